"""Ctrl+C that is only noted."""

import os
import signal

import pytest

from mambabyte.runtime.signals import interrupt_noted


def test_the_first_is_noted_the_second_interrupts_and_all_is_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupt_noted() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with interrupt_noted(insisting=False) as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
    assert signal.getsignal(signal.SIGINT) is before
