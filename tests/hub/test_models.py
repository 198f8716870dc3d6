"""Models of the hub as `ckpt=hub:owner/name`, and exports sent to it, against a hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import close_session

import mambabyte
from mambabyte import checkpoints, evaluation
from mambabyte.commands import eval as evaluate
from mambabyte.commands import export, generate
from mambabyte.data import ByteCorpus, DataSettings
from mambabyte.errors import UserError
from mambabyte.evaluation import Protocol
from mambabyte.models import ByteLM
from tests.checkpoints.formats.models import mamba_ssm_config, small_model, write_folder
from tests.hub.server import COMMIT, Hub

NAME = "owner/bytes"
HUB = f"hub:{NAME}"
LAYOUTS = [
    "pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "model.safetensors.index.json",
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub without files, that this process takes for the hub, with an empty cache."""
    hub = Hub(NAME, kind="models")
    hub.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(
        "huggingface_hub.utils._http.time.sleep", lambda seconds: None
    )  # between its attempts
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield hub
    hub.stop()


def publish(hub: Hub, folder: Path) -> None:
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def model() -> ByteLM:
    return small_model()


@pytest.fixture
def folder(model: ByteLM, tmp_path: Path) -> Callable[[str], Path]:
    return lambda layout: write_folder(
        tmp_path / "local", model.state_dict(), mamba_ssm_config(model), layout
    )


def fetched(hub: Hub) -> list[str]:
    """The names of the files whose content was sent."""
    return [
        request.split(" ")[1].rpartition("/")[2]
        for request in hub.requests
        if " /owner" in request and "GET" in request
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_downloaded_once_and_only_what_is_needed(layout, hub, folder, model) -> None:
    publish(hub, folder(layout))
    needed = sorted(hub.files)
    hub.files |= {"README.md": b"card", "optimizer.bin": b"0" * 99, "tf_model.h5": b"1"}
    loaded = mambabyte.load(HUB)
    assert checkpoints.weights_fingerprint(loaded) == checkpoints.weights_fingerprint(model)
    assert sorted(fetched(hub)) == needed
    hub.requests.clear()
    mambabyte.load(HUB)
    assert fetched(hub) == [] and len(hub.requests) == 1  # what main is now


def test_an_export_for_transformers(hub, tmp_path: Path) -> None:
    model = small_model(norm="rms", tie_embeddings=True)
    checkpoints.write_export(model, None, 0, tmp_path / "out", "transformers")
    publish(hub, tmp_path / "out")
    loaded = mambabyte.load(HUB)
    assert checkpoints.weights_fingerprint(loaded) == checkpoints.weights_fingerprint(model)
    assert sorted(fetched(hub)) == ["config.json", "model.safetensors"]


def test_safetensors_come_first(hub, folder, model) -> None:
    publish(hub, folder("model.safetensors"))
    hub.files["pytorch_model.bin"] = b"not this one"
    mambabyte.load(HUB)
    assert sorted(fetched(hub)) == ["config.json", "model.safetensors"]


def test_a_revision_and_a_commit(hub, folder) -> None:
    publish(hub, folder("model.safetensors"))
    assert checkpoints.read(f"{HUB}@v1.0").name == f"{HUB}@{COMMIT}"
    assert any("/resolve/v1.0/config.json" in request for request in hub.requests)
    hub.requests.clear()
    checkpoints.read(f"{HUB}@{COMMIT}")
    assert hub.requests == []


@pytest.mark.parametrize("how", ["switched off", "gone"])
def test_without_a_network_the_cache_is_used(how: str, hub, folder, monkeypatch) -> None:
    publish(hub, folder("pytorch_model.bin.index.json"))
    mambabyte.load(HUB)
    if how == "gone":
        hub.stop()
        close_session()  # which the hub would still answer
        monkeypatch.setattr(hub, "stop", lambda: None)
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        hub.requests.clear()
    mambabyte.load(HUB)
    with pytest.raises(
        UserError, match=r"'hub:owner/other' is not in the cache, and the hub cannot be reached"
    ):
        mambabyte.load("hub:owner/other")
    assert how == "gone" or hub.requests == []


def test_the_authors_file_without_a_config(hub, model, tmp_path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "a.pt")
    hub.files = {"README.md": b"", "a.pt": (tmp_path / "a.pt").read_bytes()}
    loaded = mambabyte.load(HUB)
    assert checkpoints.weights_fingerprint(loaded) == checkpoints.weights_fingerprint(model)
    hub.files["b.pt"] = b""
    with pytest.raises(UserError, match=r"has no config\.json, and 2 files of weights"):
        mambabyte.load(f"{HUB}@other")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("hub:", "write hub:owner/name"),
        ("hub:name", "write hub:owner/name"),
        ("hub:a/b/c", "write hub:owner/name"),
        ("hub:a/b@", "write hub:owner/name"),
        ("hub:a/..--b", "cannot be used"),
        ("hub:owner/other", "the hub has no model 'owner/other'"),
        (f"{HUB}@none", "has no revision 'none'"),
    ],
)
def test_what_is_not_there_is_one_sentence(name: str, sentence: str, hub, folder) -> None:
    publish(hub, folder("model.safetensors"))
    with pytest.raises(UserError, match=sentence) as caught:
        mambabyte.load(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (403, r"the hub refuses 'hub:owner/bytes' \(HTTP 403\): log in"),
        (418, r"the hub's 'hub:owner/bytes' cannot be used: HTTP 418; try again later"),
        (500, r"the hub's 'hub:owner/bytes' cannot be used: HTTP 500; try again later"),
    ],
)
def test_a_hub_that_refuses_is_one_sentence(status: int, sentence: str, hub) -> None:
    hub.refuse_reads = status
    with pytest.raises(UserError, match=sentence):
        mambabyte.load(HUB)


def test_incomplete_repositories_and_links_out_of_the_cache(hub, folder, tmp_path: Path) -> None:
    publish(hub, folder("model.safetensors.index.json"))
    whole = dict(hub.files)
    del hub.files["model-00002-of-00002.safetensors"]
    with pytest.raises(UserError, match="lacks a file that it should have"):
        mambabyte.load(HUB)
    hub.files, hub.commit = {"config.json": whole["config.json"]}, "b" * 40
    with pytest.raises(UserError, match="holds no weights that can be read"):
        mambabyte.load(HUB)
    hub.files, hub.commit = whole, COMMIT
    snapshot = checkpoints.read(HUB).path
    for link in ("model-00001-of-00002.safetensors", "config.json"):
        assert (snapshot / link).is_symlink()
        (snapshot / link).unlink()
        (tmp_path / "elsewhere").write_bytes(whole[link])
        (snapshot / link).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="a link that leads out of the hub's cache"):
            mambabyte.load(HUB)


def test_commands_take_it(hub, folder, configure, tmp_path: Path, monkeypatch, capsys) -> None:
    publish(hub, folder("model.safetensors"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_bytes(b"the quick brown fox " * 9)
    places = ["data=files", f"data.path={tmp_path}/text", f"data.folder={tmp_path}/prepared", "device=cpu"]
    with pytest.raises(UserError, match=r"hub:owner/bytes@c0ffee.* set context_length= and data="):
        evaluate.run(configure("eval", f"ckpt={HUB}"))
    before = set(tmp_path.iterdir())
    evaluate.run(configure("eval", f"ckpt={HUB}", "json=true", "context_length=32", *places))
    assert json.loads(capsys.readouterr().out)["checkpoint"] == f"{HUB}@{COMMIT}"
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"prepared"}
    assert not list(Path(tmp_path, "cache").rglob("*.evaluation"))
    generate.run(configure("generate", f"ckpt={HUB}", "bytes=4", "prompt=a", "device=cpu"))
    assert capsys.readouterr().out.startswith("a")
    export.run(configure("export", f"ckpt={HUB}", f"out={tmp_path}/copy"))
    mambabyte.load(tmp_path / "copy")


@pytest.mark.parametrize("format", ["safetensors", "mamba_ssm"])
def test_an_export_is_sent_as_one_commit(format: str, hub, folder, configure, tmp_path: Path, capsys) -> None:
    folder("model.safetensors")
    asked = [f"ckpt={tmp_path}/local", f"out={tmp_path}/out", f"format={format}", f"push={HUB}"]
    export.run(configure("export", *asked))
    assert f"is at {hub.endpoint}/{NAME}/commit/" in capsys.readouterr().err
    assert [(each["name"], "private" in str(each)) for each in hub.created] == [("bytes", True)]
    sent = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files == sent and "README.md" in sent
    assert checkpoints.weights_fingerprint(mambabyte.load(HUB)) == checkpoints.weights_fingerprint(
        small_model()
    )


def test_a_push_to_no_place_is_refused_before_anything_is_written(
    hub, folder, configure, tmp_path: Path
) -> None:
    folder("model.safetensors")
    for place, sentence in (("owner/bytes", "push=hub:owner/name"), ("hub:x", "write hub:owner/name")):
        with pytest.raises(UserError, match=sentence):
            export.run(configure("export", f"ckpt={tmp_path}/local", f"out={tmp_path}/out", f"push={place}"))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (
            401,
            "; log in with `hf auth login` or HF_TOKEN as one who may write to owner/bytes, and send it by",
        ),
        (
            403,
            "; log in with `hf auth login` or HF_TOKEN as one who may write to owner/bytes, and send it by",
        ),
        (404, "; see whether owner/bytes is the name of a repository of yours, and send it by"),
        (None, ": the hub cannot be reached; go online, and send it by"),
        (418, "; send it by"),
    ],
    ids=["401", "403", "404", "gone", "another"],
)
def test_what_to_do_about_a_push_that_failed(
    status, advice, hub, folder, configure, tmp_path: Path, monkeypatch, capsys
) -> None:
    folder("model.safetensors")
    hub.refuse_pushes = status
    if status is None:
        hub.stop()
        close_session()
        monkeypatch.setattr(hub, "stop", lambda: None)
    with pytest.raises(UserError) as refusal:
        export.run(configure("export", f"ckpt={tmp_path}/local", f"out={tmp_path}/out", f"push={HUB}"))
    said = str(refusal.value)
    assert said.startswith(f"'{tmp_path}/out' is written, but could not be sent to '{HUB}': ")
    assert said.endswith(f"{advice} `hf upload {NAME} {tmp_path}/out`")
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("mambabyte: ") for line in lines), lines


def test_waiting_for_the_hub_is_one_line(hub, folder, monkeypatch, capsys) -> None:
    hub.stop()
    close_session()
    monkeypatch.setattr(hub, "stop", lambda: None)
    with pytest.raises(UserError, match="is not in the cache, and the hub cannot be reached"):
        mambabyte.load(HUB)
    said = capsys.readouterr().err
    assert said == "mambabyte: the hub cannot be reached: trying for half a minute\n"


PG19_353M = "JunxiongWang/MambaByte_PG19_353M"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """(source, split, context length) of each measurement; the data are four bytes that stand for any."""
    done: list[tuple[str, str, int]] = []
    evaluate_really = evaluation.evaluate

    def prepare(data: DataSettings, split: str, only_ours: bool) -> ByteCorpus:
        done.append((data.source["_target_"].rpartition(".")[2], split, 0))
        return ByteCorpus(np.frombuffer(b"text", np.uint8), np.array([0, 4]), ["a"])

    def evaluate_with(model: ByteLM, corpus: ByteCorpus, protocol: Protocol, *rest: object, **more: object):
        done[-1] = (*done[-1][:2], protocol.context_length)
        return evaluate_really(model, corpus, protocol, *rest, **more)

    monkeypatch.setattr(DataSettings, "prepare", prepare)
    monkeypatch.setattr(evaluation, "evaluate", evaluate_with)
    return done


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ("PG19Source", "test", 8192)),
        (["split=validation"], ("PG19Source", "validation", 8192)),
        (["context_length=64"], ("PG19Source", "test", 64)),
        (["data=stdlib"], ("StandardLibrarySource", "validation", 8192)),
    ],
    ids=["nothing", "a split", "a length", "data"],
)
def test_the_papers_models_are_measured_as_in_the_paper(
    overrides, expected, hub, folder, configure, measured, monkeypatch, tmp_path, capsys
) -> None:
    hub.name = PG19_353M
    publish(hub, folder("pytorch_model.bin"))
    monkeypatch.chdir(tmp_path)
    evaluate.run(configure("eval", f"ckpt=hub:{PG19_353M}", *overrides))
    assert measured == [expected]
    said = capsys.readouterr().err
    assert ("the paper reports 0.930 bits per byte" in said) == (overrides == [])
    assert ("one of the paper's models: measuring data=pg19" in said) == (overrides != ["data=stdlib"])


@pytest.mark.parametrize(
    ("name", "overrides", "sentence"),
    [
        ("JunxiongWang/MambaByte_Code", [], "on which data it was trained; set data= to what to measure"),
        (NAME, [], "with which configuration it was trained; set context_length= and data="),
        (NAME, ["data=stdlib"], r"with which configuration it was trained; set context_length=$"),
        (NAME, ["context_length=9"], "on which data it was trained; set data= to what to measure"),
    ],
    ids=["the paper's, on data of its own", "neither", "no length", "no data"],
)
def test_what_a_model_does_not_say_is_asked_for(name, overrides, sentence, hub, folder, configure) -> None:
    hub.name = name
    publish(hub, folder("pytorch_model.bin"))
    with pytest.raises(UserError, match=sentence):
        evaluate.run(configure("eval", f"ckpt=hub:{name}", *overrides))


def test_adapters_on_the_hub_are_no_model(hub) -> None:
    hub.files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"", "README.md": b""}
    with pytest.raises(UserError, match=f"'{HUB}' holds adapters of peft without the model"):
        mambabyte.load(HUB)
