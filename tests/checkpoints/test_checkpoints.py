"""Finding, reading and refusing checkpoints."""

import pickle
import resource
from pathlib import Path

import pytest
import torch

import mambabyte
from mambabyte import checkpoints
from mambabyte.errors import UserError
from mambabyte.models import ByteLM, MambaByteConfig

CONFIG = MambaByteConfig(d_model=16, n_layer=1, d_state=4)


def content(model: ByteLM, /, **changes) -> dict:
    ours = {"format": checkpoints.FORMAT, "model": model.config.to_dict(), "config": {"context_length": 8}}
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    return {"state_dict": weights, "global_step": 3, "mambabyte": {**ours, **changes}}


@pytest.fixture
def model() -> ByteLM:
    torch.manual_seed(0)
    return CONFIG.build()


@pytest.fixture
def run_dir(model: ByteLM, tmp_path: Path) -> Path:
    for step in (3, 20, 100):
        checkpoints.write(content(model), tmp_path / "run" / "checkpoints" / f"step_{step:08d}.ckpt")
    return tmp_path / "run"


def test_a_path_resolves_to_a_checkpoint(run_dir: Path) -> None:
    newest = run_dir / "checkpoints" / "step_00000100.ckpt"
    assert checkpoints.resolve(run_dir) == newest
    assert checkpoints.resolve(run_dir / "checkpoints") == newest
    assert checkpoints.resolve(str(newest)) == newest
    (run_dir / "checkpoints" / "step_00000200.ckpt.temporary").write_bytes(b"half")
    assert checkpoints.resolve(run_dir) == newest


def test_a_model_is_loaded_ready_to_use(run_dir: Path, model: ByteLM) -> None:
    torch.manual_seed(5)
    expected_draw = torch.rand(1)
    torch.manual_seed(5)
    loaded = mambabyte.load(run_dir)
    assert torch.rand(1) == expected_draw
    assert not loaded.training
    assert loaded.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert checkpoints.read(run_dir).config == {"context_length": 8}


def test_the_fingerprint_depends_on_every_bit(model: ByteLM) -> None:
    before = checkpoints.weights_fingerprint(model)
    assert before == checkpoints.weights_fingerprint(model)
    assert checkpoints.weights_fingerprint(model.to(torch.bfloat16)) != before
    torch.manual_seed(0)
    again = CONFIG.build()
    assert checkpoints.weights_fingerprint(again) == before
    with torch.no_grad():
        weight = again.lm_head.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert checkpoints.weights_fingerprint(again) != before


@pytest.mark.parametrize("most", [0, 20, 7000, 30_000, 47_000])
def test_a_full_disk_is_one_sentence_wherever_it_is_found(model: ByteLM, tmp_path: Path, most: int) -> None:
    # A limit on file size makes write() fail where a full disk would.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write the checkpoint .* \(File too large\): free some"):
            checkpoints.write(content(model), tmp_path / "step_00000001.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def write_malicious(path: Path, model: ByteLM) -> None:
    torch.save({**content(model), "extra": Malicious(path.parent / "executed")}, path)


def write_plain_pickle(path: Path, model: ByteLM) -> None:
    path.write_bytes(pickle.dumps(Malicious(path.parent / "executed")))


def write_cut_short(path: Path, model: ByteLM) -> None:
    torch.save(content(model), path)
    path.write_bytes(path.read_bytes()[:-500])


def write_empty(path: Path, model: ByteLM) -> None:
    path.write_bytes(b"")


def write_text(path: Path, model: ByteLM) -> None:
    path.write_text("hello")


def write_other_program(path: Path, model: ByteLM) -> None:
    torch.save({"state_dict": model.state_dict(), "epoch": 1}, path)


def write_tensor(path: Path, model: ByteLM) -> None:
    torch.save(torch.zeros(3), path)


def write_other_format(path: Path, model: ByteLM) -> None:
    torch.save(content(model, format=99), path)


def write_other_class(path: Path, model: ByteLM) -> None:
    torch.save(content(model, model={"_target_": "os.system", "command": "true"}), path)


def write_other_shape(path: Path, model: ByteLM) -> None:
    torch.save(content(model, model={**model.config.to_dict(), "d_model": 32}), path)


def write_missing_weight(path: Path, model: ByteLM) -> None:
    state = content(model)
    del state["state_dict"]["model.lm_head.weight"]
    torch.save(state, path)


@pytest.mark.parametrize(
    "write",
    [
        write_malicious,
        write_plain_pickle,
        write_cut_short,
        write_empty,
        write_text,
        write_other_program,
        write_tensor,
        write_other_format,
        write_other_class,
        write_other_shape,
        write_missing_weight,
    ],
)
def test_an_unusable_file_is_refused_in_one_sentence(write, model: ByteLM, tmp_path: Path) -> None:
    path = tmp_path / "given.ckpt"
    write(path, model)
    with pytest.raises(UserError) as caught:
        checkpoints.load_model(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_removing_a_damaged_checkpoint_leaves_the_one_before_it(run_dir: Path) -> None:
    before = checkpoints.resolve(run_dir)
    damaged = before.with_name("step_00000999.ckpt")
    damaged.write_bytes(before.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"step_00000999.* remove it"):
        checkpoints.load_model(run_dir)
    damaged.unlink()
    checkpoints.load_model(run_dir)
    assert checkpoints.resolve(run_dir) == before


def test_a_missing_checkpoint_is_a_user_error(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError):
            checkpoints.load_model(path)


def test_an_interrupted_write_leaves_the_old_file(run_dir: Path, model: ByteLM, monkeypatch) -> None:
    path = run_dir / "checkpoints" / "step_00000100.ckpt"
    before = path.read_bytes()

    def fail(checkpoint, file) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write(content(model), path)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_a_user_error(model: ByteLM, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write"):
        checkpoints.write(content(model), tmp_path / "file" / "step_00000001.ckpt")
