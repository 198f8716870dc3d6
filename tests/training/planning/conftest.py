"""A rank beside the test's own."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from mambabyte.training.planning import autotune


@pytest.fixture
def waiting_rank(monkeypatch) -> Callable:
    """waiting_rank(ask) lets another rank than the test's, which is 0, ask and sees it wait; what it returns
    gives the answer, once that is there."""

    def start(ask: Callable[[], Any]) -> Callable[[], Any]:
        monkeypatch.setattr(
            autotune, "is_main_process", lambda: threading.current_thread() is threading.main_thread()
        )
        answers: list[Any] = []
        rank = threading.Thread(target=lambda: answers.append(ask()))
        rank.start()
        rank.join(0.5)
        assert rank.is_alive() and not answers

        def answer() -> Any:
            rank.join(20)
            [only] = answers
            return only

        return answer

    return start
