"""The end of a run, one of whose ranks has gone without a word.

A process that ends closes its connections, and gloo notices. A node that is lost does not, and on GPUs not
even a killed process is noticed: the others would wait in a collective for torch.distributed's timeout, half
an hour, and NCCL would then abort them without a sentence. So a thread of every rank gives signs of life,
however long the rank computes, validates, writes or waits.
"""

import os
import threading
import time
from contextlib import suppress
from datetime import timedelta

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed import Store, TCPStore

from mambabyte.training.distributed.launching import ENDED, POLL_SECONDS, exit_on

SIGN_SECONDS = 5.0
LONGEST_SILENCE = 180.0  # much longer than a thread ever waits for Python's lock
_TIMEOUT = timedelta(seconds=30)


class LostRanks(Callback):
    """Ends this process with a sentence if another rank has been silent for three minutes during training.

    Signs of life pass through the store at which the ranks have met. Rank 0 looks at all others, and these
    look at rank 0, so that the store's load grows with the number of ranks, not with its square.
    """

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        rank, ranks = trainer.global_rank, trainer.world_size
        self._silence = dict.fromkeys(range(1, ranks) if rank == 0 else [0], 0.0)  # seconds
        self._last_look = time.monotonic()
        self._over = threading.Event()
        # a connection of its own: one who waits for an answer blocks the whole connection
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_TIMEOUT)
        self._thread = threading.Thread(target=self._give_signs, args=(store, rank, self._over), daemon=True)
        self._thread.start()
        exit_on(self._problem)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "_over"):
            self._end()

    def _end(self) -> None:
        self._over.set()
        # Python aborts a process that ends while a thread of it is within the store's code.
        self._thread.join(_TIMEOUT.total_seconds())

    def _give_signs(self, store: Store, rank: int, over: threading.Event) -> None:
        seen: dict[int, bytes] = {}
        count = 0
        while not over.is_set():
            with suppress(RuntimeError):  # no store, no sign of anybody
                store.set(_key(rank), str(count))
                for other in self._silence:
                    if store.check([_key(other)]) and (sign := store.get(_key(other))) != seen.get(other):
                        seen[other], self._silence[other] = sign, 0.0
            count += 1
            over.wait(SIGN_SECONDS)

    def _problem(self) -> str | None:
        """The sentence about a lost rank; None if there is none; empty once training has ended."""
        if self._over.is_set():
            return ""
        now = time.monotonic()
        # a job that is suspended as a whole, as by SLURM, must not find everybody silent when it goes on
        passed = min(now - self._last_look, 2 * POLL_SECONDS)
        self._last_look = now
        for rank in self._silence:
            self._silence[rank] += passed
        lost = [rank for rank, seconds in self._silence.items() if seconds > LONGEST_SILENCE]
        if not lost:
            return None
        return f"rank {lost[0]} has given no sign of life for {LONGEST_SILENCE:.0f} s; {ENDED}"


def _key(rank: int) -> str:
    return f"mambabyte/sign of life/{rank}"
