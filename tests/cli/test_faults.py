"""Faults of the system are sentences; faults of the program keep their traceback."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch

from mambabyte.cli.faults import sentence
from mambabyte.errors import UserError


def no_memory_in_torch() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def no_memory_in_numpy() -> None:
    np.empty(2**60, np.uint8)


def no_memory_for_a_library() -> None:
    raise ImportError("libgomp.so: failed to map segment from shared object")


def no_memory_in_the_system() -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def no_thread() -> None:
    raise RuntimeError("can't start new thread")


MEMORY = [
    no_memory_in_torch,
    no_memory_in_numpy,
    no_memory_for_a_library,
    no_memory_in_the_system,
    no_thread,
]


@pytest.mark.parametrize("act", MEMORY)
def test_too_little_memory_is_one_sentence_wherever_it_is_found(cli, act) -> None:
    cli.behave = lambda settings: act()
    assert cli("train") == 1
    assert cli.err.startswith("mambabyte: there is not enough memory: end other programs, raise the limit")
    assert cli.err.count("\n") == 1


def test_too_little_memory_is_not_hidden_by_what_it_led_to(cli) -> None:
    def behave(settings) -> None:
        try:
            no_memory_for_a_library()
        except ImportError as error:
            raise UserError("numpy cannot be imported; install it") from error

    cli.behave = behave
    assert cli("train") == 1
    assert cli.err.startswith("mambabyte: there is not enough memory: ")


@pytest.mark.parametrize(
    ("number", "name", "said"),
    [
        (errno.ENOSPC, None, "the system says 'No space left on device': free some space"),
        (
            errno.EROFS,
            "runs/a",
            "the system says 'Read-only file system' for 'runs/a': choose another folder",
        ),
        (
            errno.EACCES,
            "a\x1b[31m",
            "the system says 'Permission denied' for 'a␛[31m': change its permissions",
        ),
        (errno.EMFILE, "a", "the system says 'Too many open files' for 'a': raise the limit of open files"),
    ],
)
def test_a_fault_of_the_file_system_is_one_sentence(cli, number: int, name: str | None, said: str) -> None:
    def behave(settings) -> None:
        raise OSError(number, os.strerror(number), name)

    cli.behave = behave
    assert cli("train") == 1
    assert cli.err.startswith(f"mambabyte: {said}")
    assert cli.err.count("\n") == 1


@pytest.mark.parametrize(
    "fault",
    [FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("x"), RuntimeError("x"), KeyError()],
)
def test_faults_of_the_program_have_no_sentence(fault: Exception) -> None:
    assert sentence(fault) is None
