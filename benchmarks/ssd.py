"""Mamba-2's state space dual, forward and backward, compared with the selective scan and with plain PyTorch.

    python benchmarks/ssd.py [--batch 1 --length 2048 --channels 512 --head 64 --states 64 --dtype float32]

`channels` are all channels, in heads of `head`. The selective scan has as many channels and 16 states
(`--scan-states`), once with its softplus, skip and gate, as Mamba's block calls it, and once the recurrence
alone, as the dual has nothing around it. The minimal formulation is the one in plain PyTorch that mamba_ssm
has for readers (modules/ssd_minimal.py), written anew here: segment sums, a product for every chunk and one
for all states between chunks, in autograd. On a CPU ours also runs at four times the length and twice the
channels, where its time per byte and channel should not grow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measuring import measure, parser, report
from torch import Tensor

from mambabyte.ops import backend_for, selective_scan, ssd

LONGER, WIDER = 4, 2


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=7)
    sizes = {"batch": 1, "length": 2048, "channels": 512, "head": 64, "states": 64, "groups": 1, "chunk": 64}
    for name, default in {**sizes, "scan-states": 16}.items():
        arguments.add_argument(f"--{name}", type=int, default=default)
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = arguments.parse_args()
    if options.channels % options.head or options.length % options.chunk:
        arguments.error("--channels must be a multiple of --head, and --length of --chunk")
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)

    def inputs(longer: int = 1, wider: int = 1) -> tuple[dict[str, Tensor], Tensor]:
        return dual_inputs(
            options.batch, longer * options.length, wider * options.channels // options.head, options.head,
            options.groups, options.states, dtype, device,
        )  # fmt: skip

    tensors, grad = inputs()
    ours = f"ssd ({backend_for(device, dtype, 'ssd')})"
    duals: dict[str, Callable[[], Tensor]] = {
        ours: lambda: ssd(**tensors),
        "ssd (reference)": lambda: ssd(**tensors, chunk=options.chunk, backend="reference"),
        "minimal": lambda: minimal(**tensors, chunk=options.chunk),
    }
    expected = duals[ours]()
    calls: dict[str, Callable[[], object]] = {}
    for name, dual in duals.items():
        difference = (dual() - expected).abs().max() / expected.abs().max()
        assert difference < (1e-4 if dtype == torch.float32 else 2e-2), (
            f"{name} computes a different result: {difference}"
        )
        add(calls, name, dual, tensors, grad)

    scanned, scan_grad = scan_inputs(
        options.batch, options.length, options.channels, options.scan_states, dtype, device
    )
    alone = {name: scanned[name] for name in ("u", "delta", "A", "B", "C")}
    scan = f"scan, N={options.scan_states}"
    add(calls, scan, lambda: selective_scan(**scanned, delta_softplus=True), scanned, scan_grad)
    add(calls, f"{scan}, alone", lambda: selective_scan(**alone), alone, scan_grad)

    longer = f"{ours} longer"
    if options.device == "cpu":
        large, large_grad = inputs(LONGER, WIDER)
        add(calls, longer, lambda: ssd(**large), large, large_grad)
        del calls[f"{longer} forward"]

    timings = measure(calls, options.repeats)
    ratios = {
        f"{name} / ours, {part}": timings[f"{name} {part}"].median / timings[f"{ours} {part}"].median
        for name in (scan, f"{scan}, alone", *duals)
        if name != ours
        for part in ("forward", "forward+backward")
    }
    if options.device == "cpu":
        ratios["longer / ours, per byte, channel"] = timings[f"{longer} forward+backward"].median / (
            LONGER * WIDER * timings[f"{ours} forward+backward"].median
        )
    setting = {key: getattr(options, key) for key in (*sizes, "dtype", "repeats")}
    report("state space dual", timings, ratios, options.json, **setting)


def add(
    calls: dict[str, Callable[[], object]], name: str, function: Callable[[], Tensor],
    tensors: dict[str, Tensor], grad: Tensor,
) -> None:  # fmt: skip
    """Its forward pass without gradients, and both passes, down to every argument."""
    calls[f"{name} forward"] = torch.no_grad()(function)
    calls[f"{name} forward+backward"] = lambda: torch.autograd.grad(function(), list(tensors.values()), grad)


def dual_inputs(
    batch: int, length: int, heads: int, head: int, groups: int, states: int, dtype: torch.dtype,
    device: torch.device,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """The dual's arguments, as leaf tensors, and a gradient of its output."""
    torch.manual_seed(0)
    x, grad = torch.randn(2, batch, length, heads, head, dtype=dtype, device=device)
    B, C = torch.randn(2, batch, length, groups, states, dtype=dtype, device=device)
    log_decay = -0.1 * torch.rand(batch, length, heads, device=device)
    tensors = {"x": x, "log_decay": log_decay, "B": B, "C": C}
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}, grad


def scan_inputs(
    batch: int, length: int, channels: int, states: int, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """The selective scan's arguments, as leaf tensors, and a gradient of its output."""
    torch.manual_seed(0)
    u, grad = torch.randn(2, batch, length, channels, dtype=dtype, device=device)
    B, C = torch.randn(2, batch, length, states, dtype=dtype, device=device)
    delta = 0.1 * torch.rand(batch, length, channels, dtype=torch.float32, device=device).to(dtype)
    tensors = {
        "u": u, "delta": delta, "A": -torch.rand(channels, states, device=device) * states, "B": B, "C": C,
        "D": torch.ones(channels, device=device), "z": torch.randn_like(u),
        "delta_bias": torch.full((channels,), -4.0, device=device),
    }  # fmt: skip
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}, grad


def minimal(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
    """The peer: x (B, L, H, P) -> (B, L, H, P), L a multiple of `chunk`."""
    dtype, share = x.dtype, x.shape[2] // B.shape[2]
    x, B, C = (tensor.float().unflatten(1, (-1, chunk)) for tensor in (x, B, C))  # (B, c, l, H, P)
    B, C = (tensor.repeat_interleave(share, dim=3) for tensor in (B, C))  # (B, c, l, H, N)
    decay = log_decay.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2)  # (B, H, c, l)
    sums = decay.cumsum(-1)
    within = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, segment_sums(decay).exp(), x)
    leaving = (sums[..., -1:] - sums).exp()
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, leaving, x)
    states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
    between = segment_sums(torch.nn.functional.pad(sums[..., -1], (1, 0))).exp()
    entering = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
    across = torch.einsum("bclhn,bchpn,bhcl->bclhp", C, entering, sums.exp())
    return (within + across).flatten(1, 2).to(dtype)


def segment_sums(x: Tensor) -> Tensor:
    """(..., l) -> (..., l, l): the sum of x after s up to t at [t, s], -inf for s after t."""
    length = x.shape[-1]
    lower = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    steps = x.unsqueeze(-1).expand(*x.shape, length).masked_fill(~lower.tril(-1), 0)
    return steps.cumsum(-2).masked_fill(~lower, -torch.inf)


if __name__ == "__main__":
    main()
