"""Text that is not scored throughout."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 4 to 120 bytes: most are shorter than a window of 32."""
    folder = tmp_path_factory.mktemp("documents")
    for number in range(24):
        text = f"{number} short and long documents. " * (1 + number % 4)
        (folder / f"{number:02}.txt").write_text(text[: 4 + 5 * number])
    return folder
