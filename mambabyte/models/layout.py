"""Layout strings: which layers a stack has, in order."""

from __future__ import annotations

import re

from mambabyte.errors import UserError

_LAYERS = re.compile(r"([A-Za-z])0*([0-9]+)\s*")
_MOST = 10**4
SHOWN = 80  # characters of a layout in a message


def parse_layout(text: str, letters: str) -> list[str]:
    """One letter for each layer: "m4 T1" is ["m", "m", "m", "m", "T"]. Blanks between groups are optional.

    Args:
        letters: those that are allowed.

    Raises:
        UserError: another letter, no count, or no layer at all.
    """
    layers: list[str] = []
    place, stripped = 0, text.strip()
    while place < len(stripped):
        group = _LAYERS.match(stripped, place)
        if group is None or group[1] not in letters or group[2] == "0":
            raise UserError(
                f"a layout is letters of {', '.join(letters)}, each with a count, such as "
                f"{letters[0]}4{letters[-1]}1; {text[:SHOWN]!r} has {stripped[place:][:SHOWN]!r}"
            )
        # Python reads no number of thousands of digits.
        layers += [group[1]] * min(int(group[2][:6]), _MOST + 1)
        place = group.end()
    if not 1 <= len(layers) <= _MOST:
        count = f"more than {_MOST}" if layers else "0"
        raise UserError(f"the layout {text[:SHOWN]!r} has {count} layers: from 1 to {_MOST} are possible")
    return layers
