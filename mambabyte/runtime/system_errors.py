"""What to do about the system's errors, in words."""

import errno
import re
from pathlib import Path

from mambabyte.errors import UserError

_SPACE = "free some space, or choose another {}"
_ACCESS = "change its permissions, or choose another {}"
_LIMIT = "raise the limit of open files (ulimit -n)"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EROFS: "choose another {}",
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.EMFILE: _LIMIT,
    errno.ENFILE: _LIMIT,
    errno.ENAMETOOLONG: "choose a shorter {}",
    errno.ENOTDIR: "a file stands where a folder should be: choose another {}",
    errno.EISDIR: "a folder stands where a file should be: choose another {}",
    errno.ELOOP: "a link in it leads to itself: choose another {}",
    errno.EIO: "check the disk, or the connection to it",
}
_WHEN_WRITING = {  # elsewhere these are the program's own mistakes
    errno.EEXIST: _REMEDIES[errno.ENOTDIR],
    errno.ENOENT: "make its folder first, or choose another {}",
}


def remedy(error: BaseException, place: str = "folder") -> str | None:
    """What to do about an error of the system, in an imperative clause; None if that is not known.

    Args:
        place: how the user names where a file goes, such as ``out=``.
    """
    number = _number(error)
    return None if number not in _REMEDIES else _REMEDIES[number].format(place)


def cannot_write(path: Path, error: Exception, place: str = "folder", kind: str = "") -> UserError:
    """The sentence for a file or folder that cannot be written.

    Args:
        place: as for :func:`remedy`.
        kind: what it holds.
    """
    reason = getattr(error, "strerror", None) or error
    advice = _WHEN_WRITING.get(_number(error) or 0, "choose another {}").format(place)
    what = " ".join(filter(None, (kind, f"'{path}'")))
    return UserError(f"cannot write {what} ({reason}): {remedy(error, place) or advice}")


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))  # as libraries in Rust write it
    return int(found[1]) if found else None
