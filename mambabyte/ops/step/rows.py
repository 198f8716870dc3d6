"""What steppers of many rows refuse."""

from collections.abc import Sequence

NO_WINDOW = "there is no window whose bytes could be taken back"


def check_batch(batch: int, rows: int) -> None:
    """Raises ValueError unless there are rows, and bytes for each of them."""
    if not rows:
        raise ValueError("there are no rows to go on with: append some")
    if batch != rows:
        raise ValueError(f"there are {rows} rows, and bytes for {batch} were given")


def check_rows(chosen: Sequence[int], rows: int) -> None:
    """Raises ValueError unless these are places among so many rows."""
    if any(not 0 <= row < rows for row in chosen):
        raise ValueError(f"rows are from 0 to {rows - 1}, and {list(chosen)} were chosen")


def check_counts(counts: Sequence[int], rows: int, length: int) -> None:
    """Raises ValueError unless these say how many bytes of a window of `length` each row keeps."""
    if len(counts) != rows or any(not 0 <= count <= length for count in counts):
        raise ValueError(
            f"each of {rows} rows keeps from 0 to {length} bytes of the last window, and {list(counts)} were "
            "to be kept"
        )
