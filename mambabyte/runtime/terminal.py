"""Text of unknown origin, as a terminal may show it."""

import re
import sys

# Control characters, which a terminal obeys, and the marks that turn the direction of writing around.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str, keep: str = "\n\t") -> str:
    """``text`` with symbols for the characters that a terminal would obey, except those in ``keep``: ␛ for
    the one that begins its commands. Data, models and file names can contain any."""
    return _OBEYED.sub(lambda found: found[0] if found[0] in keep else _symbol(found[0]), text)


def _symbol(character: str) -> str:
    if character < " ":
        return chr(0x2400 + ord(character))  # Unicode's control pictures
    return "\u2421" if character == "\x7f" else character.encode("unicode_escape").decode()


def print_coloured(text: str) -> None:
    """Print a line with colours; the data in it must hold no control characters of its own."""
    write = getattr(sys.stdout, "write_coloured", sys.stdout.write)  # absent in a notebook
    write(f"{text}\n")


def write_bytes(data: bytes) -> None:
    """Write bytes to standard output as they are, at once."""
    write = getattr(sys.stdout, "write_bytes", sys.stdout.buffer.write)
    write(data)
    sys.stdout.flush()
