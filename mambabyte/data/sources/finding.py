"""The local files that a setting names: files, folders and globs, with nothing left out in silence."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mambabyte.data.sources.opening import explaining_read_errors
from mambabyte.errors import UserError

_FOLDER_LINK = ("link to a folder", "links to folders", "name the folder itself in data.path to read it")
_BROKEN_LINK = ("link that leads nowhere", "links that lead nowhere", "bring back what it pointed to")
_SPECIAL = ("thing that is no file", "things that are no files", "give its content as a file to read it")
_announced: set[str] = set()


@dataclass(frozen=True)
class FoundFile:
    """A file below what a setting names.

    Attributes:
        name: its path below the common folder of all that the setting names.
        key: its path below the folder that the setting names, or below the fixed part of a glob: the same
            whatever else is named or lies there.
    """

    name: str
    key: str
    path: Path


def find_files(patterns: Iterable[str]) -> list[FoundFile]:
    """The files that are not empty, sorted by name. A file that is named twice counts for the first.

    Hidden files are left out. So are links to folders and what cannot be read as a file, which is said on
    stderr.

    Raises:
        UserError: a pattern matches nothing, or nothing that holds bytes; or a folder cannot be listed.
    """
    patterns = list(patterns)
    bases: dict[Path, str] = {}
    skipped: dict[tuple[str, str, str], set[str]] = {}
    for pattern in patterns:
        base, matches = _matches(pattern)
        for match in matches:
            with explaining_read_errors(match):
                for path in _below(match, skipped):
                    bases.setdefault(path, base)
    _announce(skipped)
    with explaining_read_errors(", ".join(patterns)):
        found = [path for path in bases if path.stat().st_size]
    if not found:
        raise UserError(f"data.path {', '.join(patterns)} holds no bytes; name files that do")
    shared = os.path.commonpath(bases.values())
    files = [
        FoundFile(path.relative_to(shared).as_posix(), path.relative_to(bases[path]).as_posix(), path)
        for path in found
    ]
    return sorted(files, key=lambda file: file.name)


def list_folder(folder: str | Path, suffix: str) -> list[Path]:
    """The entries of a folder whose names end in ``suffix``, sorted; none if there is no such folder.

    Raises:
        UserError: the folder cannot be listed.
    """
    with explaining_read_errors(folder):
        try:
            return sorted(Path(folder, name) for name in os.listdir(folder) if name.endswith(suffix))
        except (FileNotFoundError, NotADirectoryError):
            return []


def glob_files(pattern: str) -> list[Path]:
    """What a glob matches, an absolute path.

    Raises:
        UserError: a folder that the glob has to list cannot be listed.
    """
    parts = Path(pattern).parts
    for number in (number for number, part in enumerate(parts) if glob.has_magic(part)):
        for folder in filter(os.path.isdir, glob.glob(os.path.join(*parts[:number]), recursive=True)):
            with explaining_read_errors(folder):  # glob would take it for an empty one
                os.scandir(folder).close()
    return [Path(match) for match in glob.glob(pattern, recursive=True)]


def _matches(pattern: str) -> tuple[str, list[Path]]:
    """All that a pattern matches, and the folder that it names or in which that lies."""
    expanded = os.path.abspath(os.path.expanduser(pattern))
    with explaining_read_errors(expanded):
        try:
            os.lstat(expanded)
            return expanded if os.path.isdir(expanded) else os.path.dirname(expanded), [Path(expanded)]
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in it
            pass
    matches = glob_files(expanded)
    if not matches:
        raise UserError(f"no file matches data.path {pattern!r}; name one that exists")
    parts = Path(expanded).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return os.path.join(*parts[:fixed]), matches


def _below(path: Path, skipped: dict[tuple[str, str, str], set[str]]) -> Iterator[Path]:
    """The files in a folder, or the file itself; what is left out is added to ``skipped``."""
    if not path.is_dir():
        yield from _regular([path], skipped)
        return
    for folder, subfolders, names in os.walk(path, onerror=refuse_unlisted):
        # A prepared corpus (mambabyte.data.corpus) holds copies of documents, not documents.
        if {"bytes.bin", "meta.json"} <= set(names) and {"offsets.bin", "offsets.npy"} & set(names):
            subfolders.clear()
            continue
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        links = {link for name in subfolders if os.path.islink(link := os.path.join(folder, name))}
        if links:
            skipped.setdefault(_FOLDER_LINK, set()).update(links)
        yield from _regular((Path(folder, name) for name in names if not name.startswith(".")), skipped)


def _regular(paths: Iterable[Path], skipped: dict[tuple[str, str, str], set[str]]) -> Iterator[Path]:
    for path in paths:
        with explaining_read_errors(path):
            if path.is_file():
                yield path
            else:
                reason = _SPECIAL if path.exists() else _BROKEN_LINK
                skipped.setdefault(reason, set()).add(str(path))


def _announce(skipped: dict[tuple[str, str, str], set[str]]) -> None:
    """Print a line for each reason for which paths were skipped, once in this process."""
    for (one, many, advice), paths in skipped.items():
        first = repr(min(paths)) + (", ..." if len(paths) > 1 else "")
        line = f"left out {len(paths):,} {one if len(paths) == 1 else many} ({first}); {advice}"
        if line not in _announced:
            _announced.add(line)
            print(f"mambabyte: {line}", file=sys.stderr, flush=True)


def refuse_unlisted(error: OSError) -> None:
    """For ``os.walk(onerror=)``, which otherwise passes over folders that cannot be listed."""
    with explaining_read_errors(error.filename):
        raise error
