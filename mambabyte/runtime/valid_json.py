"""Everything that this program writes as JSON: valid JSON, which has no NaN and no Infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def valid_json(value: Any, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """Plain values as JSON text.

    A number that is not finite becomes null, and its object gets a ``reason``, unless it has one already.
    """
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        endless = [str(key) for key, item in value.items() if _is_endless(item)]
        reason = {"reason": f"{' and '.join(endless)}: not a finite number"} if endless else {}
        return {**reason, **{key: _finite(item) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if _is_endless(value) else value


def _is_endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
