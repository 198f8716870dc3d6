"""Layout strings: which layers a stack has, in order."""

from __future__ import annotations

import re

from mambabyte.errors import UserError

_LAYERS = re.compile(r"([A-Za-z])(\d+)\s*")
_MOST = 10**4


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
        if group is None or group[1] not in letters or int(group[2]) < 1:
            raise UserError(
                f"a layout is letters of {', '.join(letters)}, each with a count, such as "
                f"{letters[0]}4{letters[-1]}1; {text!r} has {stripped[place:]!r}"
            )
        layers += [group[1]] * min(int(group[2]), _MOST + 1)
        place = group.end()
    if not 1 <= len(layers) <= _MOST:
        raise UserError(f"the layout {text!r} has {len(layers)} layers: from 1 to {_MOST} are possible")
    return layers
