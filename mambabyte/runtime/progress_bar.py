"""How far an evaluation is, on stderr, where that is a terminal."""

from collections.abc import Callable

from tqdm import tqdm


def progress_bar(label: str) -> Callable[[int, int], None]:
    """A function of (bytes done, bytes to do) that draws a bar with the rate and the time left."""
    bar: tqdm | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            # disable=None: only on a terminal; what an earlier run has done is no part of this one's rate
            bar = tqdm(desc=label, total=total, initial=done, unit="B", unit_scale=True, disable=None)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show
