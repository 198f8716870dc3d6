"""Commands neither write nor print planted secrets, not even when they crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mambabyte.errors import UserError
from mambabyte.runtime.secrets import HIDDEN, redact, refuse_secrets

WANDB_KEY = "5ec2e70f" * 5  # forty hexadecimal digits, as wandb's older keys
HUB_TOKEN = "hf_" + "PlantedTokenOfTheHub" * 2
PASSWORD = "correct-horse-battery"
PLANTED = {
    "WANDB_API_KEY": WANDB_KEY,
    "HF_TOKEN": HUB_TOKEN,
    "AWS_SECRET_ACCESS_KEY": "planted/secret/access/key/0123456789ABCD",
    # An unreachable hub and an unreachable proxy, each with a password in its address.
    "HF_ENDPOINT": f"http://reader:{PASSWORD}@127.0.0.1:9",
    "HTTPS_PROXY": f"http://reader:{PASSWORD}@127.0.0.1:9",
    "WANDB_MODE": "offline",
}
SECRETS = (WANDB_KEY, HUB_TOKEN, PASSWORD, PLANTED["AWS_SECRET_ACCESS_KEY"])
TINY = [
    *("train", "name=kept", "data=files", "data.path=corpus.txt", "data.windows=packed", "context_length=32"),
    *("model.d_model=32", "model.n_layer=1", "trainer.global_batch_bytes=64", "trainer.micro_batch_size=2"),
    *("trainer.accelerator=cpu", "trainer.max_steps=3", "optimizer.warmup_steps=1"),
    *("callbacks.sample_every=0", "logger=wandb"),
]


class Folder:
    """Runs the program in one folder, with secrets in its environment, and looks for them afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        sentences = (f"Sentence {number} of a small corpus.\n" for number in range(400))
        (path / "corpus.txt").write_text("".join(sentences))
        home = path / "home"
        home.mkdir()
        # Not the wandb service that another test has started, which writes to that test's folder.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        self.environment = {**inherited, **PLANTED, "HOME": str(home), "OMP_NUM_THREADS": "1"}
        # Use the same compiled kernels as the other tests.
        self.environment.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))

    def run(self, *arguments: str, program: tuple[str, ...] = ("-m", "mambabyte")) -> tuple[int, str]:
        """Run a command; returns its exit code and output. Neither they nor any file may hold a secret."""
        done = subprocess.run(
            [sys.executable, *program, *arguments],
            cwd=self.path, env=self.environment, capture_output=True, timeout=300,
        )  # fmt: skip
        output = done.stdout + done.stderr
        holders = ["the output"] if holds_secret(output) else []
        holders += [str(file) for file in self.files() if holds_secret(file.read_bytes())]
        assert holders == [], output.decode(errors="replace")
        return done.returncode, output.decode(errors="replace")

    def files(self) -> list[Path]:
        return [path for path in self.path.rglob("*") if path.is_file()]


def holds_secret(content: bytes) -> bool:
    return any(secret.encode() in content for secret in SECRETS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("secrets"))
    code, output = folder.run(*TINY)
    assert code == 0, output
    return folder


def test_a_run_writes_none_to_configuration_checkpoint_metrics_or_logs(trained):
    names = {path.name for path in trained.files()}
    assert {"config.yaml", "metrics.csv", "summary.json", "debug.log"} <= names
    assert any(path.suffix == ".ckpt" for path in trained.files())
    assert any(path.suffix == ".wandb" for path in trained.files())


def test_commands_that_read_the_run_print_none(trained):
    for command in (
        ["eval", "--bpb", "--json", "ckpt=runs/kept", "device=cpu"],
        ["report", "runs/kept", "--out", "report"],
        ["report", "runs/kept", "--json"],
    ):
        code, output = trained.run(*command)
        assert code == 0, output


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_doctor_reports_only_that_they_exist(trained, form):
    _, output = trained.run("doctor", *form)
    assert "wandb" in output and "hugging face" in output


@pytest.mark.parametrize(
    "override",
    [
        f"data.path=https://reader:{PASSWORD}@host/corpus.txt",
        f"data.path=https://{HUB_TOKEN}@host/corpus.txt",
        f"data.path='https://host/corpus.txt?X-Amz-Signature={WANDB_KEY}'",
        f"name={WANDB_KEY}",
        f"callbacks.sample_prompt={HUB_TOKEN}",
        "data.path=${oc.env:HF_TOKEN}",
        "name='${oc.env:HF_TOKEN}'",
    ],
)
def test_a_secret_in_an_override_is_refused(trained, override):
    key = override.partition("=")[0]
    for more in ([], ["-m"]):  # in a sweep, Hydra itself keeps the overrides
        code, output = trained.run(*TINY, override, *more)
        assert code == 1
        assert f"{key} holds a password or a token" in output
        assert "Traceback" not in output


def test_a_secret_in_a_users_yaml_is_refused(trained):
    folder = trained.path / "mine" / "experiment"
    folder.mkdir(parents=True)
    text = "# @package _global_\nname: mine\ncallbacks: {sample_prompt: '${oc.env:WANDB_API_KEY}'}\n"
    (folder / "mine.yaml").write_text(text)
    code, output = trained.run(*TINY[:1], "--config-dir", "mine", "experiment=mine")
    assert code == 1
    assert "callbacks.sample_prompt holds a password or a token" in output
    assert not (trained.path / "runs" / "mine").exists()


@pytest.mark.parametrize(
    "faulty",
    [
        [f"nothing=https://reader:{PASSWORD}@host"],
        [f"https://reader:{PASSWORD}@host"],
        ["--token", HUB_TOKEN],
        [f"experiment={HUB_TOKEN}"],
        ["data=pg19", "data.retries=1"],  # contacts the hub at the address that holds the password
    ],
)
def test_an_error_message_does_not_repeat_it(trained, faulty):
    code, output = trained.run("train", "name=faulty", *faulty)
    assert code == 1
    assert "Traceback" not in output


def test_a_crash_does_not_print_it(trained):
    """A step fails with secrets in its message and its cause's, under a logger that keeps what is printed."""
    crash = (
        "import sys, mambabyte.cli.main as cli\n"
        "from mambabyte.training.module import ByteLMModule\n"
        "def training_step(self, batch, index):\n"
        "    try:\n"
        f"        raise OSError('see https://reader:' + {PASSWORD[:9]!r} + {PASSWORD[9:]!r} + '@host')\n"
        "    except OSError as fault:\n"
        f"        raise RuntimeError('the token was hf_' + {HUB_TOKEN[3:]!r}) from fault\n"
        "ByteLMModule.training_step = training_step\n"
        "sys.exit(cli.main())\n"
    )
    code, output = trained.run(*TINY, "name=crash", program=("-c", crash))
    assert code == 1
    assert f"https://{HIDDEN}@host" in output and f"the token was {HIDDEN}" in output
    assert output.count("Traceback") == 2


def test_ordinary_text_is_not_redacted(monkeypatch):
    monkeypatch.setenv("TEST_API_KEY", "short")
    plain = [
        "hf://datasets/emozilla/pg19@5ec2e70f5ec2e70f5ec2e70f5ec2e70f5ec2e70f/data.parquet",
        "ssh://git@host/corpus.git",
        "runs/short/hf_quickstart",
        "somebody@example.org: https://host/path?split=train&tokens=3",
    ]
    for text in plain:
        assert redact(text) == text
    refuse_secrets({"data": {"path": plain, "seed": 3, "nothing": None}})


def test_a_nested_secret_is_found(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "a-token-of-a-service")
    with pytest.raises(UserError, match=r"^data\.paths\.here holds a password or a token"):
        refuse_secrets({"data": {"paths": ["corpus", {"here": "folder/a-token-of-a-service"}]}})
    assert redact("a-token-of-a-service, twice: a-token-of-a-service") == f"{HIDDEN}, twice: {HIDDEN}"
