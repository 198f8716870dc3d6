"""Mixtures: their documents, the windows by weight, and what they refuse."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from mambabyte.commands import eval as evaluate
from mambabyte.config.settings import to_plain
from mambabyte.data import ByteDataModule, DataSettings, MixtureSource, prepare
from mambabyte.data.sources.mixture import BLOCK, parts_of, windows_per_block
from mambabyte.data.windows.mixed import MixedWindows
from mambabyte.data.windows.shuffled import ShuffledWindows
from mambabyte.errors import UserError
from mambabyte.runs.changes import changes, refuse_other_run
from mambabyte.runs.metrics_csv import read_metrics

LENGTH = 8


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two folders of 12 files: every byte of "old" is below 128, every byte of "new" at least 128."""
    generator = np.random.default_rng(0)
    folders = {name: tmp_path / name for name in ("old", "new")}
    for low, folder in zip((0, 128), folders.values(), strict=True):
        folder.mkdir()
        for number in range(12):
            content = generator.integers(low, low + 128, 20 + 7 * number, dtype=np.uint8)
            (folder / f"{number:02}.bin").write_bytes(content.tobytes())
    return folders


@pytest.fixture
def described(folders):
    """described(old={...}, new={...}) -> the parts, with more settings for each."""

    def described(**more):
        return {
            name: {"data": "files", "path": str(folder), "validation_fraction": 0.3, **more.get(name, {})}
            for name, folder in folders.items()
        }

    return described


def settings(parts, folder: Path, **more) -> DataSettings:
    source = {"_target_": "mambabyte.data.MixtureSource", "parts": parts}
    return DataSettings.from_settings({"source": source, "folder": folder, **more}, "data")


def module(parts, folder: Path, **more) -> ByteDataModule:
    return ByteDataModule(settings(parts, folder, **more), LENGTH, 4, 16, seed=1)


def test_it_holds_the_documents_of_all_parts_one_part_after_the_other(described, folders, tmp_path) -> None:
    source = MixtureSource(described())
    for split in ("train", "validation"):
        corpus = prepare(source, split, tmp_path / "prepared")
        expected = [
            (f"{name}/{document.name}", document.data)
            for name, part in source.sources.items()
            for document in part.documents(split)
        ]
        found = [(corpus.names[i], corpus.document(i).tobytes()) for i in range(corpus.num_documents)]
        assert found == expected and len(found) > 4
        for name, (first, last) in parts_of(corpus).items():
            part = prepare(source.sources[name], split, tmp_path / "prepared")
            assert corpus.part(first, last).fingerprint == part.fingerprint
            assert [f"{name}/{each}" for each in part.names] == list(corpus.part(first, last).names)


def test_validation_bytes_are_of_each_part(described, tmp_path) -> None:
    source = MixtureSource(described(new={"validation_bytes": 33}))
    corpus = prepare(source, "validation", tmp_path)
    parts = {name: corpus.part(*ends).num_bytes for name, ends in parts_of(corpus).items()}
    whole = prepare(source.sources["old"], "validation", tmp_path).num_bytes
    assert parts == {"old": whole, "new": 33}
    assert source.expected_bytes("validation") is not None


@pytest.mark.parametrize("policy", ["random_per_document", "contiguous", "packed"])
def test_each_part_has_its_share_of_the_windows_in_the_order_it_has_alone(
    described, tmp_path, policy
) -> None:
    source = MixtureSource(described(new={"weight": 3}))
    assert source.weights == {"old": 0.25, "new": 0.75}
    corpus = prepare(source, "train", tmp_path)
    mixed = MixedWindows(policy, corpus, LENGTH, 5, source.weights)
    windows = mixed.batch(np.arange(3 * BLOCK))
    is_new = windows["bytes"].max(axis=1) >= 128
    assert [int(is_new[block : block + BLOCK].sum()) for block in range(0, 3 * BLOCK, BLOCK)] == [768] * 3
    assert len(set(np.flatnonzero(is_new[:BLOCK]) - np.flatnonzero(is_new[BLOCK : 2 * BLOCK]))) > 10
    for name, share, which in (("old", 256, ~is_new), ("new", 768, is_new)):
        alone = ShuffledWindows(policy, corpus.part(*parts_of(corpus)[name]), LENGTH, 5)
        for block in range(3):
            inside = np.zeros_like(which)
            inside[block * BLOCK : (block + 1) * BLOCK] = which[block * BLOCK : (block + 1) * BLOCK]
            expected = alone.batch(np.arange(block * share, (block + 1) * share))
            for field in expected:
                assert sorted(map(bytes, windows[field][inside])) == sorted(map(bytes, expected[field]))


def test_a_window_is_a_function_of_its_position(described, tmp_path) -> None:
    corpus = prepare(MixtureSource(described()), "train", tmp_path)
    mixed = MixedWindows("packed", corpus, LENGTH, 5, {"old": 0.5, "new": 0.5})
    positions = np.random.default_rng(0).integers(0, 5000, 40)
    together, copied = mixed.batch(positions), pickle.loads(pickle.dumps(mixed))
    for row, position in enumerate(positions.tolist()):
        alone = copied.batch(np.array([position]))
        assert all((alone[field][0] == together[field][row]).all() for field in alone)
        origin = copied.origin(position)
        number = list(corpus.names).index(origin["document"])
        begin = corpus.offsets[number] + origin["offset"]
        assert corpus.bytes[begin] == together["bytes"][row, 0]


def test_shares_come_to_whole_blocks() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        weights = generator.random(generator.integers(1, 9)) + 0.01
        shares = {str(number): weight for number, weight in enumerate(weights / weights.sum())}
        counts = windows_per_block(shares)
        assert sum(counts.values()) == BLOCK
        assert all(abs(counts[name] - BLOCK * share) < 1 for name, share in shares.items())


def test_a_resumed_run_may_not_change_the_weights(described, tmp_path) -> None:
    first = module(described(), tmp_path)
    rows = [batch["bytes"].tolist() for batch in first.train_batches(0, 6)]
    again = module(described(), tmp_path)
    again.load_state_dict(first.state_dict())
    assert [batch["bytes"].tolist() for batch in again.train_batches(2, 6)] == rows[8:]
    other = module(described(new={"weight": 2}), tmp_path)
    other.load_state_dict(first.state_dict())
    with pytest.raises(UserError, match="the weights of data"):
        next(other.train_batches(2, 6))


def test_paths_mean_the_same_from_another_folder(described, folders, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    parts = {name: {**part, "path": name} for name, part in described().items()}
    absolute = settings(parts, tmp_path).with_absolute_paths().source["parts"]
    assert {part["weight"] for part in absolute.values()} == {1.0}
    assert {name: part["path"] for name, part in absolute.items()} == {k: str(v) for k, v in folders.items()}


def test_the_order_of_the_parts_means_nothing(described) -> None:
    parts = described()
    assert MixtureSource(parts).identity() == MixtureSource(dict(reversed(parts.items()))).identity()


def test_a_measurement_reads_all_of_the_files_of_a_part(described, tmp_path) -> None:
    parts = described()
    del parts["old"]["validation_fraction"]
    held_out = settings(parts, tmp_path)
    whole = held_out.measured_whole()
    sizes = []
    for each in (held_out, whole):
        corpus = each.prepare("validation")
        sizes.append({name: last - first for name, (first, last) in parts_of(corpus).items()})
    assert sizes[1]["old"] == 12 > sizes[0]["old"] and sizes[1]["new"] == sizes[0]["new"]


def test_a_part_without_data_is_named(described, tmp_path) -> None:
    source = MixtureSource(described(new={"validation_fraction": 0}))
    with pytest.raises(UserError, match=r"data\.parts\.new: it has no validation data"):
        prepare(source, "validation", tmp_path)


WRONG = {
    "no parts": ({}, "data.parts must say what to mix"),
    "a name with a slash": ({"a/b": {"data": "stdlib"}}, "unlike 'a/b'"),
    "no section": ({"a": "stdlib"}, "data.parts.a must be a section"),
    "no data": ({"a": {"path": "x"}}, "data.parts.a does not say which data it is: set data.parts.a.data$"),
    "a slip in a name": (
        {"old": {"data": "stdlib"}, "odl": {"weight": 2}},
        "data.parts.odl does not say .*, or one of the other parts, which are old",
    ),
    "data of null": ({"a": {"data": None}}, "data.parts.a: data must be a file of conf/data, not null"),
    "null for a name": ({None: {"data": "stdlib"}}, "unlike null"),
    "true for a name": ({True: {"data": "stdlib"}}, "unlike true"),
    "a number and its text": ({1: {"data": "stdlib"}, "1": {"data": "stdlib"}}, "two parts 1"),
    "unknown data": ({"a": {"data": "file"}}, "data.parts.a: data must be .* did you mean files"),
    "another mixture": ({"a": {"data": "wikipedia_mixture"}}, "data.parts.a: .* is a mixture itself"),
    "itself": ({"a": {"data": "mixture"}}, "data.parts.a: data must be a file of conf/data"),
    "unknown key": ({"a": {"data": "files", "pth": "x"}}, "data.parts.a: .*pth; did you mean path"),
    "a slip": ({"a": {"data": "stdlib", "weigth": 2}}, "data.parts.a: .*weigth; did you mean weight"),
    "a key of all": ({"a": {"data": "stdlib", "windows": "packed"}}, "set data.windows"),
    "no weight": ({"a": {"data": "stdlib", "weight": 0}}, "data.parts.a: weight must be above 0"),
    "too light": (
        {"a": {"data": "stdlib", "weight": 1e-4}, "b": {"data": "stdlib"}},
        "data.parts.a.weight is .* less than one window",
    ),
}


@pytest.mark.parametrize(("parts", "message"), WRONG.values(), ids=[name.replace(" ", "_") for name in WRONG])
def test_what_cannot_be_obeyed_is_refused(parts, message) -> None:
    with pytest.raises(UserError, match=message):
        MixtureSource(parts)


def test_a_path_that_leads_nowhere_names_its_part(tmp_path) -> None:
    with pytest.raises(UserError, match=r"data.parts.a: .*nowhere"):
        settings({"a": {"data": "files", "path": str(tmp_path / "nowhere")}}, tmp_path).check_path()


def test_a_part_without_a_window_is_named(described, folders, tmp_path) -> None:
    for path in folders["new"].glob("*"):
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"data\.parts\.new: "):
        next(module(described(), tmp_path).train_batches(0, 1))


def test_the_first_bytes_of_all_parts_are_no_sample_of_them(described, tmp_path) -> None:
    with pytest.raises(UserError, match=r"data.parts.NAME.validation_bytes"):
        settings(described(), tmp_path, validation_bytes=100)


def test_a_run_and_its_evaluation_report_each_part(start, described, configure, capsys) -> None:
    parts = re.sub(
        r'"(\w+)":', r"\1:", json.dumps(described(new={"weight": 3}))
    )  # Hydra's keys have no quotes
    run_dir = start("mixed", "data=mixture", f"data.parts={parts}", "callbacks.validate_bytes=1000000")
    last = read_metrics(run_dir / "metrics.csv")[-1]
    summary = json.loads((run_dir / "summary.json").read_text())
    capsys.readouterr()
    evaluate.run(configure("eval", f"ckpt={run_dir}", "json=true"))
    measured = json.loads(capsys.readouterr().out)
    assert measured["parts"] == summary["parts"] and list(measured["parts"]) == ["new", "old"]
    found = measured["parts"].values()
    assert sum(part["bytes"] for part in found) == measured["bytes"]
    bits = sum(part["bits_per_byte"] * part["bytes"] for part in found)
    assert bits / measured["bytes"] == pytest.approx(measured["bits_per_byte"], rel=1e-12)
    for name, part in measured["parts"].items():  # batched in another way, so rounded in another
        assert last[f"validation_bits_per_byte/{name}"] == pytest.approx(part["bits_per_byte"], rel=1e-6)
    evaluate.run(configure("eval", f"ckpt={run_dir}"))
    assert "\n  new: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "parts",
    [
        ["data.parts={a: {data: stdlib}, b: {data: wikipedia}}", "data.parts.a.weight=3"],
        ["data.parts={a: {data: stdlib, weight: 1}, b: {data: wikipedia}}", "data.parts.a.weight=3"],
        ["data.parts.a.data=stdlib", "data.parts.a.weight=3", "data.parts.b.data=wikipedia"],
    ],
    ids=["not written", "written", "one by one"],
)
def test_a_parts_settings_can_be_set_whether_or_not_they_are_written(configure, parts) -> None:
    source = configure("train", "data=mixture", *parts).data.build_source()
    assert source.weights == {"a": 0.75, "b": 0.25}


def test_a_part_that_is_called_null_is_one_sentence(configure) -> None:
    with pytest.raises(UserError, match="has null as a key: choose another name"):
        configure("train", "data=mixture", "data.parts={null: {data: stdlib}}")


def test_a_mixture_is_not_streamed(configure) -> None:
    with pytest.raises(UserError, match=r"a mixture is prepared on the disk .*: set data\.streaming=false"):
        configure("train", "data=wikipedia_mixture", "data.streaming=true")


def test_a_resumed_run_may_change_the_retries_of_a_part_and_nothing_else_of_it(configure, tmp_path) -> None:
    recorded = to_plain(configure("train", "data=wikipedia_mixture"))
    again = configure("train", "data=wikipedia_mixture", "data.parts.de.retries=2")
    refuse_other_run(tmp_path, changes(recorded, again))
    for key, value in {"revision": "abc", "language": "fr", "weight": 5}.items():
        other = configure("train", "data=wikipedia_mixture", f"data.parts.de.{key}={value}")
        with pytest.raises(UserError, match=rf"another configuration: data\.parts\.de\.{key} \(.*go back to"):
            refuse_other_run(tmp_path, changes(recorded, other))
