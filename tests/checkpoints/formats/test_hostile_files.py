"""Files made to run code, to fill memory or to confuse, and damaged ones: one sentence, nothing is run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mambabyte
from mambabyte.errors import UserError
from mambabyte.models import MambaByteConfig
from tests.checkpoints.formats.models import mamba_ssm_config, small_model, write_folder
from tests.checkpoints.test_checkpoints import Malicious

BIN, SAFE = "pytorch_model.bin", "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    def write(layout: str) -> Path:
        model = small_model()
        return write_folder(tmp_path / "a", model.state_dict(), mamba_ssm_config(model), layout)

    return write


def assert_refused(folder: Path, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        mambabyte.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 9, 0.5, 0.999])
@pytest.mark.parametrize("layout", [BIN, SAFE])
def test_a_file_cut_short(layout: str, kept: float, folder) -> None:
    path = folder(layout) / layout
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    assert_refused(path.parent, "damaged, cut short or of another format")


def test_a_pickle_with_code_is_not_run(folder, tmp_path: Path) -> None:
    path = folder(BIN) / BIN
    torch.save({**torch.load(path, weights_only=True), "x": Malicious(tmp_path / "ran")}, path)
    assert_refused(path.parent, "more than tensors and plain values: it is not read")
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    assert_refused(path.parent, "damaged, cut short")
    assert not (tmp_path / "ran").exists()


def repacked(
    path: Path, compression: int, change: Callable[[str, bytes], bytes] = lambda name, data: data
) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, change(name, data))


def test_a_zip_bomb_is_refused_before_it_is_read(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(BIN) / BIN
    torch.save({"zeros": torch.zeros(10**6)}, path)
    repacked(path, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    assert_refused(path.parent, "damaged")


def test_a_pickle_that_makes_an_array_of_any_size_is_refused(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(BIN) / BIN
    size = b"\x8a\x06" + struct.pack("<Q", 2**44)[:6]
    bomb = b"\x80\x02cbuiltins\nbytearray\n" + size + b"\x85R."
    repacked(path, zipfile.ZIP_STORED, lambda name, data: bomb if name.endswith("data.pkl") else data)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    assert_refused(path.parent, "damaged")


def test_weights_of_an_absurd_shape_are_refused_before_anything_is_built(folder, monkeypatch) -> None:
    path = folder(BIN) / BIN
    weights = torch.load(path, weights_only=True)
    build = MambaByteConfig.build

    def on_meta_only(config: MambaByteConfig) -> object:
        assert torch.empty(0).is_meta
        return build(config)

    monkeypatch.setattr(MambaByteConfig, "build", on_meta_only)
    for shape in ((48, 10**13), (10**13, 5)):
        torch.save({**weights, "backbone.layers.0.mixer.A_log": torch.zeros(1).expand(shape)}, path)
        assert_refused(path.parent, "A_log has fewer numbers than its shape says")
    torch.save({**weights, "backbone.layers.0.mixer.A_log": torch.zeros(48, 10**4)}, path)
    assert_refused(
        path.parent, r"ssm_cfg\.d_state=5, and its weights are of a model with ssm_cfg\.d_state=10000"
    )


def test_weights_without_data_are_refused(folder) -> None:
    path = folder(BIN) / BIN
    weights = torch.load(path, weights_only=True)
    torch.save({name: tensor.to("meta") for name, tensor in weights.items()}, path)
    assert_refused(path.parent, "has fewer numbers than its shape says")


def header(path: Path, change: Callable[[dict], None]) -> None:
    """Change the JSON at the start of a safetensors file."""
    whole = path.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    described = json.loads(whole[8 : 8 + size])
    change(described)
    text = json.dumps(described).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])


def test_a_safetensors_header_that_lies(folder) -> None:
    path = folder(SAFE) / SAFE
    whole = path.read_bytes()
    for change in (
        lambda described: described["lm_head.weight"].update(shape=[10**9, 24]),
        lambda described: described["lm_head.weight"].update(data_offsets=[0, 10**15]),
        lambda described: described.update(twice=described["lm_head.weight"]),
    ):
        header(path, change)
        assert_refused(path.parent, "damaged")
        path.write_bytes(whole)
    path.write_bytes(struct.pack("<Q", 2**62) + whole[8:])
    assert_refused(path.parent, "damaged")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", '"d_model"', "{", "[" * 100_000, '{"d_model": ' + "9" * 5000 + "}", "\udcff"),
        '{"d_model": NaN, "n_layer": 2}', '{"d_model": 1e999, "n_layer": 2}',
        '{"d_model": 24, "n_layer": [2]}',
        '{"format": 1, "model": {"_target_": "os.system"}, "global_step": 1}',
        '{"format": 1, "model": 5, "global_step": 1}', '{"format": {}, "model": {}, "global_step": 1}',
    ],
    ids=lambda text: ascii(text[:30]),
)  # fmt: skip
def test_a_hostile_config(text: str, folder) -> None:
    path = folder(SAFE)
    (path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert_refused(path, ".")


def test_shards_that_are_missing_swapped_or_elsewhere(folder, tmp_path: Path) -> None:
    for layout in (BIN, SAFE):
        path = folder(f"{layout}.index.json")
        one, two = sorted(path.glob(f"*-of-00002.{layout.rpartition('.')[2]}"))
        one.rename(tmp_path / "x")
        assert_refused(path, "00001-of-00002.* is missing")
        two.rename(one)
        (tmp_path / "x").rename(two)
        assert_refused(path, "is another file than .* describes: missing are .*; not in the index are")
        for place in ("../x.bin", "/etc/passwd", "x.txt", "", None, ["a"]):
            index = {"weight_map": {"lm_head.weight": place}}
            (path / f"{layout}.index.json").write_text(json.dumps(index))
            assert_refused(path, "which is no .* file beside it")
        (path / f"{layout}.index.json").write_text("{}")
        assert_refused(path, "has no weight_map")
        for file in path.iterdir():
            file.unlink()


def test_links_and_pipes(folder, tmp_path: Path) -> None:
    path = folder(SAFE) / SAFE
    path.rename(tmp_path / "blob")
    path.symlink_to(tmp_path / "blob")
    assert mambabyte.load(path.parent).num_parameters() > 0  # as the hub's cache has it
    (tmp_path / "blob").unlink()
    assert_refused(path.parent, "is a link to a file that is not there")
    path.unlink()
    os.mkfifo(path)
    assert_refused(path.parent, "is no regular file")
    path.unlink()
    assert_refused(path.parent, "holds a config.json, but no weights")
