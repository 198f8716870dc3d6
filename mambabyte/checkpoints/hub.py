"""Models of the Hugging Face hub: ``hub:owner/name[@revision]``, downloaded once into its library's cache."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mambabyte.checkpoints.formats.layout import (
    ADAPTER_CONFIG,
    CONFIG,
    INDEX,
    check_file,
    refuse_adapters,
    shards,
    weights_file,
)
from mambabyte.errors import UserError
from mambabyte.runtime.secrets import redact
from mambabyte.runtime.system_errors import remedy

PREFIX = "hub:"
_ID = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
_PICKLES = (".pt", ".pth", ".bin")
# By name: the hub's HTTP client, and with it the class of its errors, changes with the hub's releases.
_UNREACHABLE = {"ConnectionError", "TimeoutError", "TransportError", "OfflineModeIsEnabled"}


class HubId(NamedTuple):
    """A model of the hub, such as ``JunxiongWang/MambaByte_Code``, and a branch, tag or commit of it."""

    name: str
    revision: str | None

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.revision}" if self.revision else "")


def hub_id(text: str | Path) -> HubId | None:
    """The hub id that ``text`` is; None if it is a path.

    Raises:
        UserError: it begins as one, and is none.
    """
    if not str(text).startswith(PREFIX):
        return None
    match = _ID.fullmatch(str(text))
    if match is None:
        raise UserError(f"'{text}' is no model of the hub: write hub:owner/name, or hub:owner/name@revision")
    return HubId(match[1], match[2])


def download(wanted: HubId) -> tuple[Path, HubId]:
    """The folder, or the one file, of a model in the hub's cache, and the commit that it is.

    Downloaded is only what is read and not there yet. Without a network the cache alone is asked.

    Raises:
        UserError: there is no such model, it cannot be reached and is not in the cache, or it is incomplete.
    """
    with _explaining(wanted), _in_our_words():
        try:
            config = _file(wanted, CONFIG)
        except Exception as error:
            if "RemoteEntryNotFoundError" not in _kinds(error):
                raise
            return _single_file(wanted)
        folder = config.parent
        commit = HubId(wanted.name, folder.name)
        needed = weights_file([path.name for path in folder.iterdir()]) or weights_file(_listing(commit))
        if needed is None:
            raise UserError(
                f"'{wanted}' holds no weights that can be read (model.safetensors or pytorch_model.bin)"
            )
        path = _file(commit, needed)
        for name in shards(path) if needed.endswith(INDEX) else ():
            _file(commit, name)
        return folder, commit


def upload(folder: Path, target: HubId) -> str:
    """Send a folder to the hub as one commit, and return its address. A new repository is private.

    Raises:
        UserError: nobody is logged in, the name is another's, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="mambabyte")
    try:
        with _in_our_words():
            api.create_repo(target.name, private=True, exist_ok=True)
            done = api.upload_folder(
                repo_id=target.name, folder_path=folder, revision=target.revision,
                commit_message="Upload by mambabyte export",
            )  # fmt: skip
    except Exception as error:
        raise UserError(
            f"'{folder}' is written, but could not be sent to '{target}': {_reason(error)}; "
            f"{_before_sending(error, target)}send it by `hf upload {target.name} {folder}`"
        ) from error
    return str(done.commit_url)


def _before_sending(error: Exception, target: HubId) -> str:
    """What to do about the cause of a failed upload."""
    status = _status([error, error.__cause__, error.__context__])
    if status in (401, 403) or "LocalTokenNotFoundError" in _kinds(error):
        return f"log in with `hf auth login` or HF_TOKEN as one who may write to {target.name}, and "
    if status == 404:
        return f"see whether {target.name} is the name of a repository of yours, and "
    if _kinds(error) & _UNREACHABLE:
        return "go online, and "
    return ""


def _file(wanted: HubId, name: str) -> Path:
    """A file of the model in the cache, downloaded if it is not there yet."""
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(wanted.name, name, revision=wanted.revision, library_name="mambabyte"))
    check_file(path)
    if not path.resolve().is_relative_to(path.parents[2].resolve()):  # blobs/ is beside snapshots/<commit>/
        raise UserError(f"'{path}' is a link that leads out of the hub's cache: remove it, and try again")
    return path


def _single_file(wanted: HubId) -> tuple[Path, HubId]:
    """The only weights of a repository without a config, as PyTorch saves a state dict."""
    listing = _listing(wanted)
    if ADAPTER_CONFIG in listing:
        refuse_adapters(wanted)
    names = [name for name in listing if name.endswith(_PICKLES) and "/" not in name]
    if len(names) != 1:
        raise UserError(
            f"'{wanted}' has no {CONFIG}, and {len(names)} files of weights: name a repository with one model"
        )
    path = _file(wanted, names[0])
    return path, HubId(wanted.name, path.parent.name)


def _listing(wanted: HubId) -> list[str]:
    from huggingface_hub import HfApi

    return HfApi(library_name="mambabyte").list_repo_files(wanted.name, revision=wanted.revision)


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Leave out what the hub's library logs, a line for each attempt, but for one that says we wait."""
    from huggingface_hub.utils import logging as theirs

    logger = theirs.get_logger("huggingface_hub")
    before, logger.handlers = logger.handlers, [_Waiting()]
    try:
        yield
    finally:
        logger.handlers = before


class _Waiting(logging.Handler):
    _said = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._said and "Retry" in record.getMessage():
            self._said = True
            print("mambabyte: the hub cannot be reached: trying for half a minute", file=sys.stderr)


@contextmanager
def _explaining(wanted: HubId) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(_explanation(wanted, error)) from error


def _explanation(wanted: HubId, error: Exception) -> str:
    chain = [error, error.__cause__, error.__context__]  # the library wraps some in "not found locally"
    kinds = set[str]().union(*map(_kinds, chain))
    status = _status(chain)
    if "GatedRepoError" in kinds:
        return (
            f"'{wanted}' asks for a login with access to it: accept its terms on its page, and set HF_TOKEN"
        )
    if "RepositoryNotFoundError" in kinds:
        return f"the hub has no model '{wanted.name}', or it is private and asks for a login (HF_TOKEN)"
    if "RevisionNotFoundError" in kinds:
        return f"'{wanted.name}' has no revision {wanted.revision!r}"
    if "EntryNotFoundError" in kinds and "LocalEntryNotFoundError" not in kinds:
        return f"'{wanted}' lacks a file that it should have: {_reason(error)}"
    if status in (401, 403):
        return f"the hub refuses '{wanted}' (HTTP {status}): log in with `hf auth login`, or set HF_TOKEN"
    if status is None and (kinds & _UNREACHABLE or "LocalEntryNotFoundError" in kinds):
        return (
            f"'{wanted}' is not in the cache, and the hub cannot be reached: go online (and unset "
            "HF_HUB_OFFLINE), or give ckpt= a local folder"
        )
    reason = _reason(error) if status is None else f"HTTP {status}"
    advice = remedy(error, "HF_HOME") or "try again later, or set HF_ENDPOINT to a hub that works"
    return f"the hub's '{wanted}' cannot be used: {reason}; {advice}"


def _status(errors: Iterable[BaseException | None]) -> int | None:
    """The HTTP status of the first of the errors that has one."""
    statuses = (getattr(getattr(error, "response", None), "status_code", None) for error in errors)
    return next(filter(None, statuses), None)


def _reason(error: Exception) -> str:
    if _kinds(error) & _UNREACHABLE:
        return "the hub cannot be reached"
    return redact((str(error).splitlines() or [""])[0]) or type(error).__name__


def _kinds(error: BaseException | None) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}
