"""The Hugging Face hub and Weights & Biases: credentials and reachability.

Training needs neither, so nothing here is blocking.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from mambabyte.doctor.finding import Finding
from mambabyte.runtime.credentials import has_wandb_credentials

LONGEST_WAIT = 3.0  # seconds, for both together
_ON = ("1", "true", "yes", "on")
_HUB_FIX = (
    "data and models from the hub need a network, a proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT); "
    "data=stdlib, data=files and local copies (data.path=) do not"
)
_WANDB_FIX = "logger=wandb records offline with WANDB_MODE=offline, and `wandb sync` sends it later"


def credentials() -> Iterator[Finding]:
    wandb, hugging_face = has_wandb_credentials(), has_hugging_face_token()
    for name, present, use in (
        ("wandb", wandb, "for logger=wandb online: `wandb login` or WANDB_API_KEY"),
        ("hugging face", hugging_face, "for private or gated data sets and models: HF_TOKEN"),
    ):
        yield Finding(name, "credential present" if present else f"no credential ({use})")


def has_hugging_face_token() -> bool:
    """Whether there is a token in the environment or a file from ``hf auth login``, which is not read."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return bool(os.environ.get("HF_TOKEN")) or (home / "token").is_file()


def reachability() -> Iterator[Finding]:
    """Whether the services answer at the addresses that their environment variables give."""
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    wandb = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    hub_offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in _ON
    wandb_offline = os.environ.get("WANDB_MODE", "").lower() in ("offline", "disabled")
    services = (
        ("hugging face hub", hub, hub_offline, _HUB_FIX),
        ("wandb service", wandb, wandb_offline, _WANDB_FIX),
    )
    answers: dict[str, str | None] = {}
    probes = [
        # daemons: a DNS lookup can take very long, and must not delay the program's exit
        threading.Thread(target=_probe, args=(name, address, answers), daemon=True)
        for name, address, offline, _ in services
        if not offline
    ]
    for probe in probes:
        probe.start()
    for probe in probes:
        probe.join(LONGEST_WAIT)
    for name, address, offline, fix in services:
        host = urlparse(address).hostname or "no host"  # not the address, which may hold a password
        fault = answers.get(name, f"no answer in {LONGEST_WAIT:.0f} s")
        if offline:
            yield Finding(name, f"{host}, not asked: the environment sets offline mode")
        elif fault is None:
            yield Finding(name, f"{host} answers")
        else:
            yield Finding(name, f"{host} cannot be reached: {fault}", fix)


def _probe(name: str, address: str, answers: dict[str, str | None]) -> None:
    """Record None if the service answers, whatever the answer, else the error in a few words."""
    try:
        parts = urlparse(address)
        without_password = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        with urlopen(Request(without_password, method="HEAD"), timeout=LONGEST_WAIT):
            answers[name] = None
    except HTTPError:
        answers[name] = None
    except URLError as fault:
        reason = fault.reason
        answers[name] = (getattr(reason, "strerror", None) or type(reason).__name__).lower()
    except (OSError, ValueError) as fault:
        answers[name] = type(fault).__name__
