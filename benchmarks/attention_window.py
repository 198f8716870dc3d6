"""Attention within a sliding window, forward and backward, beside attention over all positions.

    python benchmarks/attention_window.py [--length 8192 --batch 1 --heads 4 --head-dim 48 --windows 128 1024]

`causal_attention` with each window; the same without, which PyTorch computes by a fused kernel that leaves
out the future; one call with an L x L mask, as much public code has it; and one call for each block of
`window` queries after another. All is fp32, and all results are compared first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measuring import measure, parser, report
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mambabyte.models.layers import causal_attention


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=5)
    for name, default in (("length", 8192), ("batch", 1), ("heads", 4), ("head-dim", 48)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    arguments.add_argument("--windows", type=int, nargs="+", default=[128, 1024])
    options = arguments.parse_args()
    torch.manual_seed(0)
    setting = {key: getattr(options, key) for key in ("length", "batch", "heads", "head_dim", "repeats")}
    shape = options.batch, options.length, options.heads, options.head_dim
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    weights = torch.randn(*shape[:2], options.heads * options.head_dim)

    def passes(function: Callable[..., Tensor], *window: int) -> Callable[[], None]:
        return lambda: function(q, k, v, *window).backward(weights)

    calls = {"all positions": passes(causal_attention)}
    for window in options.windows:
        for name, function in (("blocks at once", causal_attention), *OTHERS.items()):
            with torch.no_grad():
                torch.testing.assert_close(function(q, k, v, window), masked(q, k, v, window))
            calls[f"window of {window}, {name}"] = passes(function, window)
    timings = measure(calls, options.repeats)
    ratios = {}
    for window in options.windows:
        ours = timings[f"window of {window}, blocks at once"].median
        for name in ("all positions", *(f"window of {window}, {other}" for other in OTHERS)):
            ratios[f"{name} / {window} at once"] = timings[name].median / ours
    report("attention, forward and backward", timings, ratios, options.json, **setting)


def masked(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    places = torch.arange(q.shape[1])
    distance = places[:, None] - places
    return attend(q, k, v, (distance >= 0) & (distance < window)).flatten(2)


def one_after_another(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    parts = []
    for first in range(0, q.shape[1], window):
        queries, lowest = q[:, first : first + window], max(0, first - window + 1)
        last = first + queries.shape[1]
        places = torch.arange(lowest, last)
        distance = places[first - lowest :, None] - places
        mask = (distance >= 0) & (distance < window)
        parts.append(attend(queries, k[:, lowest:last], v[:, lowest:last], mask))
    return torch.cat(parts, dim=1).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


OTHERS = {"one mask": masked, "block after block": one_after_another}


if __name__ == "__main__":
    main()
