"""Errors that the user can fix: the command line prints them as one sentence and exits with their code."""

import errno
import re

_OUT_OF_MEMORY = re.compile(
    r"can.?t allocate memory|cannot allocate memory|out of memory|bad_alloc"
    r"|failed to map segment|can't start new thread",
    re.IGNORECASE,
)


class UserError(Exception):
    """An error that the user can fix; its text is one sentence: what is wrong and what to do."""

    exit_code = 1


class Interrupted(UserError):
    """Stopped by a signal after saving; the same command resumes from there (75 is sysexits' EX_TEMPFAIL)."""

    exit_code = 75


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory: Python, PyTorch, the loader of libraries and the system each have
    an error of their own for it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    if isinstance(error, (RuntimeError, ImportError, OSError)):
        return bool(_OUT_OF_MEMORY.search(str(error)))
    return isinstance(error, MemoryError)
