"""`mambabyte serve`."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import openai
import pytest
import torch

from mambabyte import checkpoints, generation
from mambabyte.commands import serve
from mambabyte.errors import UserError
from mambabyte.models import SpaceByteConfig
from mambabyte.serving import app
from mambabyte.serving.server import Server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_it_serves_until_a_signal_which_is_no_failure(finished: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "mambabyte", "serve", f"ckpt={finished}", "port=0", "device=cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline()
        address = re.fullmatch(r"finished is served at (http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\n", line)
        assert address, line + process.stderr.read()
        with openai.OpenAI(base_url=f"{address[1]}/v1", api_key="none", max_retries=0) as client:
            done = client.completions.create(model="finished", prompt="the ", max_tokens=8)
            assert done.usage.total_tokens == 12
            stream = client.completions.create(model="finished", prompt="", max_tokens=16384, stream=True)
            next(iter(stream))
            process.send_signal(number)
            with pytest.raises(openai.APIError, match="shutting down"):
                list(stream)
        out, err = process.communicate(timeout=60)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
    assert process.returncode == 0 and out == ""
    first, second = err.splitlines()
    assert re.fullmatch(r"[\d:]{8} 4 bytes read, 8 written, [\d,]+ bytes/s", first)
    assert re.fullmatch(r"[\d:]{8} 0 bytes read, [\d,]+ written, [\d,]+ bytes/s; failed", second)


def complaint(configure, *overrides: str) -> str:
    with pytest.raises(UserError) as refusal:
        serve.run(configure("serve", "device=cpu", *overrides))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_an_address_that_is_not_to_be_had_is_told_in_a_sentence(configure, finished: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is taken" in complaint(configure, f"ckpt={finished}", f"port={port}")
    assert "host=192.0.2.1 is no" in complaint(configure, f"ckpt={finished}", "host=192.0.2.1", "port=0")
    assert "host=no such" in complaint(configure, f"ckpt={finished}", "host='no such'", "port=0")
    assert "nowhere" in complaint(configure, "ckpt=nowhere", "port=0")


def test_a_model_without_probabilities_is_refused(configure, finished: Path, tmp_path: Path) -> None:
    content = checkpoints.read(finished).content
    for tensor in content["state_dict"].values():
        tensor.fill_(torch.nan)
    checkpoints.write(content, tmp_path / "nan.ckpt")
    assert "NaN" in complaint(configure, f"ckpt={tmp_path}/nan.ckpt", "port=0")


def test_the_weights_are_those_of_the_batch(configure, finished: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(generation, "generate", lambda *arguments: asked.append(arguments[-1]) or [])
    monkeypatch.setattr(generation, "Batch", lambda model, weights: asked.append(weights))
    monkeypatch.setattr(Server, "serve_on", lambda self, listener: None)
    monkeypatch.setattr(serve, "log_to_stderr", lambda: None)
    serve.run(configure("serve", f"ckpt={finished}", "port=0", "device=cpu", "weights=bf16"))
    assert asked == ["bf16", "bf16"]


def test_no_text_may_be_longer_than_the_model_has_patches_for(configure, monkeypatch, tmp_path: Path) -> None:
    config = SpaceByteConfig(d_model=8, n_head=1, local_d_model=8, local_n_head=1, global_max_length=20)
    checkpoints.write_export(config.build(), None, 0, tmp_path / "model")
    limits, build = [], app.build_app
    monkeypatch.setattr(
        app, "build_app", lambda engine, its, *more: limits.append(its) or build(engine, its, *more)
    )
    monkeypatch.setattr(Server, "serve_on", lambda self, listener: None)
    monkeypatch.setattr(serve, "log_to_stderr", lambda: None)
    serve.run(configure("serve", f"ckpt={tmp_path}/model", "port=0", "device=cpu"))
    assert limits[0].max_length == 39


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_is_named_with_its_extra(configure, monkeypatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert "pip install 'mambabyte[serve]'" in complaint(configure, "ckpt=a")


def test_a_key_that_no_client_could_send_is_refused(configure, monkeypatch) -> None:
    monkeypatch.setenv(serve.API_KEY, "sésame")
    said = complaint(configure, "ckpt=a", "port=0")
    assert said.startswith("MAMBABYTE_API_KEY") and "sésame" not in said


@pytest.mark.parametrize(
    ("key", "host", "says"),
    [
        (None, "127.0.0.1", ""),
        (None, "0.0.0.0", "other machines can use this server (set MAMBABYTE_API_KEY"),
        ("sesame", "0.0.0.0", "other machines can use this server with its API key"),
    ],
    ids=["loopback", "all", "all-with-key"],
)
def test_a_warning_where_others_can_reach_it(
    configure, finished: Path, monkeypatch, capsys, key: str | None, host: str, says: str
) -> None:
    monkeypatch.setattr(Server, "serve_on", lambda self, listener: None)
    monkeypatch.setattr(serve, "log_to_stderr", lambda: None)
    if key is None:
        monkeypatch.delenv(serve.API_KEY, raising=False)
    else:
        monkeypatch.setenv(serve.API_KEY, key)
    serve.run(configure("serve", f"ckpt={finished}", f"host={host}", "port=0", "device=cpu", "name=other"))
    out, err = capsys.readouterr()
    assert out.startswith("other is served at http://127.0.0.1:")
    assert says in err and (says or not err) and "sesame" not in out + err
