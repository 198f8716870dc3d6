"""What `import mambabyte` offers: the commands' work on a model in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from pathlib import Path

import numpy as np
import pytest
import torch

import mambabyte
from mambabyte.commands import eval as evaluate
from mambabyte.commands import generate
from mambabyte.errors import UserError
from mambabyte.models import ByteLM, MambaByteConfig, TransformerConfig

SMALL = (MambaByteConfig(d_model=16, n_layer=1), TransformerConfig(d_model=16, n_layer=1, n_head=2))


@pytest.fixture(params=SMALL, ids=lambda config: type(config).__name__)
def model(request: pytest.FixtureRequest) -> ByteLM:
    torch.manual_seed(0)
    return request.param.build().eval()


def test_dir_shows_what_there_is_and_all_of_it_is_there() -> None:
    assert {"bits_per_byte", "generate", "load", "save", "train", "models", "ops"} <= set(dir(mambabyte))
    for name in dir(mambabyte):
        assert getattr(mambabyte, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mambabyte.nonsense


def test_importing_imports_no_torch() -> None:
    code = "import sys, mambabyte; dir(mambabyte); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_it_generates_what_the_command_prints(finished: Path, configure, capsys) -> None:
    settings = {"bytes": 12, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": 3}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    generate.run(configure("generate", f"ckpt={finished}", "prompt=the ", "device=cpu", *overrides))
    written = mambabyte.generate(mambabyte.load(finished), b"the ", **settings)
    assert isinstance(written, bytes) and len(written) == 12
    assert capsys.readouterr().out == (b"the " + written).decode("utf-8", "replace") + "\n"


def test_what_was_read_goes_on_as_often_as_one_likes(model: ByteLM, tmp_path: Path) -> None:
    whole = mambabyte.generate(model, b"the end", 9, seed=2)
    context = mambabyte.read(model, b"the")
    mambabyte.save_context(tmp_path / "the.state", model, context)
    for again in (context, mambabyte.load_context(tmp_path / "the.state", model)):
        assert mambabyte.generate(model, b" end", 9, seed=2, context=again) == whole
    with pytest.raises(UserError, match="a model reads bytes and no text"):
        mambabyte.read(model, "the")  # type: ignore[arg-type]


def test_generation_ends_before_a_stop_string(model: ByteLM) -> None:
    whole = mambabyte.generate(model, b"the", 40)
    stop = whole[20:22]
    assert mambabyte.generate(model, b"the", 40, stop=[b"never this", stop]) == whole[: whole.index(stop)]
    with pytest.raises(UserError, match="a stop string must be bytes"):
        mambabyte.generate(model, b"the", 40, stop=["text"])  # type: ignore[list-item]
    with pytest.raises(UserError, match="a stop string must have a byte or more"):
        mambabyte.generate(model, b"the", 40, stop=[b""])
    assert mambabyte.generate(model, b"the", 40, stop=[memoryview(stop)]) == whole[: whole.index(stop)]
    for no_list in (None, 5):
        with pytest.raises(UserError, match="stop must be a list of stop strings"):
            mambabyte.generate(model, b"the", 40, stop=no_list)  # type: ignore[arg-type]


def test_what_is_no_context_is_one_sentence(model: ByteLM) -> None:
    with pytest.raises(UserError, match=r"context must be what mambabyte\.read returns, not bytes"):
        mambabyte.generate(model, context=b"the")  # type: ignore[arg-type]


def test_a_drafter_changes_nothing(model: ByteLM) -> None:
    smaller = MambaByteConfig(d_model=8, n_layer=1, d_state=2).build()
    whole = mambabyte.generate(model, b"the the the", 60)
    for draft in ("ngram", smaller):
        assert mambabyte.generate(model, b"the the the", 60, draft=draft) == whole


def test_generated_text_may_be_held_to_utf8(model: ByteLM) -> None:
    mambabyte.generate(model, b"", 200, temperature=1.0, valid_utf8=True).decode()


@pytest.mark.parametrize("protocol", ["disjoint", "sliding", "stateful"])
def test_it_measures_what_eval_measures(
    protocol: str, finished: Path, configure, tmp_path: Path, capsys
) -> None:
    data = b"the quick brown fox \xff jumps " * 9
    (tmp_path / "text").write_bytes(data)
    places = ["data=files", f"data.path={tmp_path}/text", f"data.folder={tmp_path}/p", "device=cpu"]
    how = ["data.validation_fraction=1.0", f"protocol={protocol}", "context_length=32"]
    evaluate.run(configure("eval", f"ckpt={finished}", *places, *how, "json=true"))
    expected = json.loads(capsys.readouterr().out)
    assert expected["bytes"] == len(data)
    found = mambabyte.bits_per_byte(mambabyte.load(finished), data, protocol, context_length=32)
    assert found == expected["bits_per_byte"]


def test_what_is_saved_is_loaded_with_the_same_bits(model: ByteLM, tmp_path: Path) -> None:
    mambabyte.save(model, tmp_path / "saved")
    loaded = mambabyte.load(tmp_path / "saved", device="cpu")
    assert type(loaded) is type(model)
    assert not loaded.training
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(UserError, match="already exists"):
        mambabyte.save(model, tmp_path / "saved")


def test_no_precision_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = SMALL[0].build().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-11)  # less than float32 can hold
    mambabyte.save(model, "~/double")
    loaded = mambabyte.load(tmp_path / "double").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    mambabyte.save(model.bfloat16(), tmp_path / "half")
    loaded = mambabyte.load(tmp_path / "half").state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in model.state_dict().items())


def test_the_bytes_of_wider_items_are_measured(model: ByteLM) -> None:
    wide = array("i", range(100))
    expected = mambabyte.bits_per_byte(model, wide.tobytes(), context_length=64)
    assert mambabyte.bits_per_byte(model, memoryview(wide), context_length=64) == expected


def test_a_saved_model_is_measured_where_the_data_and_the_context_are_named(
    model: ByteLM, tmp_path: Path, configure, capsys
) -> None:
    mambabyte.save(model, tmp_path / "saved")
    (tmp_path / "text").write_bytes(b"some text " * 8)
    data = ["data=files", f"data.path={tmp_path}/text", f"data.folder={tmp_path}/p"]
    for given, wanted in ((data, "context_length="), ([], "context_length= and data=")):
        with pytest.raises(UserError, match=f"does not say .* set {wanted}$"):
            evaluate.run(configure("eval", f"ckpt={tmp_path}/saved", *given))
    evaluate.run(configure("eval", f"ckpt={tmp_path}/saved", *data, "context_length=16"))
    assert "context 16 bytes" in capsys.readouterr().out


def test_a_model_takes_pythons_bytes(model: ByteLM) -> None:
    data = b"abc\x00\xff"
    tensor = torch.tensor([list(data)])
    assert torch.equal(model(data), model(tensor))
    assert torch.equal(model.prefill(data)[0], model.prefill(tensor)[0])
    for call in (model, model.prefill):
        with pytest.raises(UserError, match="a model reads bytes and no text"):
            call("abc")


def test_numbers_of_numpy_are_numbers(model: ByteLM) -> None:
    plain = {"bytes": 4, "temperature": 0.5, "top_k": 9, "seed": 2}
    of_numpy = {name: np.float32(v) if name == "temperature" else np.int64(v) for name, v in plain.items()}
    assert mambabyte.generate(model, b"a", **of_numpy) == mambabyte.generate(model, b"a", **plain)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda model: mambabyte.generate(model, "def "), "prompt must be bytes"),
        (lambda model: mambabyte.generate(model, b"a", draft=3), "draft must be 'ngram', .* not int"),
        (lambda model: mambabyte.generate(model, b"a", bytes=0), "bytes must be at least 1"),
        (lambda model: mambabyte.generate(model, b"a", top_p=2.0), "top_p must be above 0"),
        (lambda model: mambabyte.generate(model, [1, 2]), "prompt must be bytes"),
        (lambda model: mambabyte.generate(model, None), "prompt must be bytes"),
        (lambda model: mambabyte.generate(model, b"a", bytes=1.5), "bytes must be an integer, not 1.5"),
        (lambda model: mambabyte.generate(model, b"a", bytes="9"), "bytes must be an integer, not '9'"),
        (
            lambda model: mambabyte.generate(model, b"a", temperature=float("nan")),
            "temperature must",
        ),
        (lambda model: mambabyte.generate(model, b"a", temperature=-1), "temperature must be at least 0"),
        (lambda model: mambabyte.generate(model, b"a", temperature=None), "temperature must be a number"),
        (lambda model: mambabyte.generate(model, b"a", top_k=1.5), "top_k must be an integer or null"),
        (lambda model: mambabyte.generate(model, b"a", seed=-1), "seed must be at least 0"),
        (lambda model: mambabyte.generate(model, b"a", seed=2**70), "seed must be .* below 4,294,967,296"),
        (lambda _: mambabyte.generate(torch.nn.Linear(2, 2), b"a"), "model must be a ByteLM, .* not Linear"),
        (lambda _: mambabyte.bits_per_byte("runs/a", b"a"), "model must be a ByteLM, .* not str"),
        (lambda _: mambabyte.save(torch.nn.Linear(2, 2), "x"), "model must be a ByteLM, .* not Linear"),
        (lambda model: mambabyte.save(model, None), "path must be text or a Path, not NoneType"),
        (lambda model: mambabyte.bits_per_byte(model, "text"), "data must be bytes"),
        (
            lambda model: mambabyte.bits_per_byte(model, b"ab", context_length=1.5),
            "context_length must",
        ),
        (lambda model: mambabyte.bits_per_byte(model, b"ab", batch_size=0), "batch_size must be at least 1"),
        (lambda model: mambabyte.bits_per_byte(model, b"ab", precision=16), "precision must be one of fp32"),
        (lambda model: mambabyte.bits_per_byte(model, b""), "there are no bytes to measure"),
        (lambda model: mambabyte.bits_per_byte(model, b"a", "other"), "protocol must be one of"),
        (lambda _: mambabyte.load("nowhere"), "there is no checkpoint at 'nowhere'"),
        (lambda _: mambabyte.load("nowhere", device="nothing"), "there is no device 'nothing' here"),
    ],
)
def test_mistakes_are_sentences(call, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        call(SMALL[0].build())
