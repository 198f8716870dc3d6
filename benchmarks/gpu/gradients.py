"""Values and gradients of every kernel and of a small model against the reference in float64, and whether
a second run has the same bits.

An error is the largest deviation over the expected tensor's largest magnitude, the worst over the outputs
and all gradients. The reach is 1e-2 in bf16 and 1e-5 in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from stage import Stage, main
from torch import Tensor

from mambabyte.models import MambaByteConfig
from mambabyte.ops import causal_conv1d, residual_norm, selective_scan, ssd

Op = Callable[..., tuple[Tensor, ...] | Tensor]


def run(stage: Stage) -> None:
    batch, length, channels, states = stage.choose((2, 2113, 264, 16), (2, 37, 8, 3))
    generator = torch.Generator(stage.device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=stage.device)

    wide, narrow = (batch, length, channels), (batch, length, states)
    start = draw(batch, length) > 2.3  # one step in a hundred

    inputs = {
        "u": draw(*wide), "delta": draw(*wide), "A": -draw(channels, states).exp(), "B": draw(*narrow),
        "C": draw(*narrow), "D": draw(channels), "z": draw(*wide), "delta_bias": draw(channels) - 2,
    }  # fmt: skip
    rounded = ("u", "delta", "B", "C", "z")
    scan = partial(selective_scan, delta_softplus=True)
    whole = partial(scan, return_final_state=True, document_start=start)
    with_state = {**inputs, "initial_state": draw(batch, channels, states)}
    for backend in stage.backends("selective_scan"):
        if backend == "mamba_ssm":  # which takes neither states nor document starts
            check(stage, "selective_scan", scan, backend, inputs, rounded)
        else:
            check(stage, "selective_scan", whole, backend, with_state, rounded)

    dual = partial(ssd, return_final_state=True, document_start=start)
    heads, group = (batch, length, 4, channels // 4), (batch, length, 2, states)
    inputs = {
        "x": draw(*heads), "log_decay": -draw(*heads[:3]).abs() / 10, "B": draw(*group), "C": draw(*group),
        "initial_state": draw(batch, 4, channels // 4, states),
    }  # fmt: skip
    for backend in stage.backends("ssd"):
        check(stage, "ssd", dual, backend, inputs, ("x", "B", "C"))

    convolve = partial(causal_conv1d, return_final_state=True, document_start=start)
    inputs = {
        "x": draw(*wide), "weight": draw(channels, 4), "bias": draw(channels),
        "initial_state": draw(batch, 3, channels),
    }  # fmt: skip
    for backend in stage.backends("causal_conv1d"):
        check(stage, "causal_conv1d", convolve, backend, inputs, ("x", "initial_state"))

    norm = partial(residual_norm, epsilon=1e-5, rms=False)
    inputs = {
        "residual": draw(*wide),
        "update": draw(*wide),
        "weight": draw(channels),
        "bias": draw(channels),
    }
    for backend in stage.backends("residual_norm"):
        check(stage, "residual_norm", norm, backend, inputs, ("update",))
    with stage.case("a model"):
        model(stage)


def check(
    stage: Stage, name: str, op: Op, backend: str, inputs: dict[str, Tensor], rounded: tuple[str, ...]
) -> None:
    """Compare a backend with the reference in float64; both get inputs rounded to the activations' dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        case = f"{name} {backend} {str(dtype).removeprefix('torch.')}"
        with stage.case(case):
            given = {key: x.to(dtype if key in rounded else torch.float32) for key, x in inputs.items()}
            exact = {key: x.double() for key, x in given.items()}
            expected = with_gradients(op, exact, "reference")
            first, second = (with_gradients(op, given, backend) for _ in range(2))
            stage.record(
                case,
                error=(max(map(relative_error, first, expected)), ""),
                same_bits=(float(all(map(torch.equal, first, second))), ""),
            )


def with_gradients(op: Op, inputs: dict[str, Tensor], backend: str) -> list[Tensor]:
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    found = op(**leaves, backend=backend)
    outputs = found if isinstance(found, tuple) else (found,)
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    drawn = [torch.randn(x.shape, generator=generator, device=x.device).bfloat16() for x in outputs]
    weights = [
        weight.to(x.dtype) for weight, x in zip(drawn, outputs, strict=True)
    ]  # the same in every dtype
    return [*outputs, *torch.autograd.grad(outputs, list(leaves.values()), weights)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def model(stage: Stage) -> None:
    """Gradients of all parameters, in fp32 and under bf16 autocast, against those of the model in float64."""
    width, length = stage.choose((256, 1031), (16, 21))
    torch.manual_seed(0)
    with stage.device:
        ours = MambaByteConfig(d_model=width, n_layer=4).build()
        bytes = torch.randint(0, 256, (2, length + 1))

    def gradients(bf16: bool) -> list[Tensor]:
        ours.zero_grad()
        with torch.autocast(stage.device.type, torch.bfloat16, enabled=bf16):
            logits = ours(bytes[:, :-1])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), bytes[:, 1:].flatten()).backward()
        return [parameter.grad.clone() for parameter in ours.parameters()]

    rounded, single = gradients(bf16=True), gradients(bf16=False)
    ours.double()
    exact = gradients(bf16=False)
    for name, found in (("bf16", rounded), ("fp32", single)):
        stage.record(f"a model in {name}", error=(max(map(relative_error, found, exact)), ""))


if __name__ == "__main__":
    main("gradients", run)
