"""Text of unknown origin, as a terminal may show it."""

import re

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
