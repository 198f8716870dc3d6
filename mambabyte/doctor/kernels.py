"""The compiled kernels, checked against the reference on small inputs, in values and gradients."""

from collections.abc import Callable, Iterator

import torch

from mambabyte import ops
from mambabyte.doctor import machine
from mambabyte.doctor.finding import Finding
from mambabyte.models import MambaByte, MambaByteConfig
from mambabyte.ops.cpu import build

REBUILD = "remove the kernel cache, so that the kernel is rebuilt; if it is still wrong, please report it"
# Two fp32 summation orders of 65 steps differ by about 1e-6 of the largest value; a wrong kernel by 1e-1.
_TOLERANCE = 1e-4


def compiler() -> Finding:
    found = build.find_compiler()
    fix = "install g++ or clang++, or set CXX: the CPU kernels are tens of times faster than plain PyTorch"
    return Finding("c++ compiler", found or "none", None if found else fix)


def cache() -> Finding:
    return machine.cache("kernel cache", build.cache_folder(), "XDG_CACHE_HOME")


def backends() -> Iterator[Finding]:
    for backend in ops.describe_backends():
        checked, fix = "", None
        if backend.available and backend.name != "reference":
            checked, fix = check(backend.op, backend.name)
        value = f"{'' if backend.available else 'not '}available, {backend.reason}{checked}"
        yield Finding(f"{backend.op}: {backend.name}", value, fix, blocking=fix is not None)


def check(op: str, backend: str) -> tuple[str, str | None]:
    """Compare a backend with the reference; return the end of the finding's value, and its fix."""
    try:
        pairs = list(zip(_OUTPUTS[op](backend, backend), _OUTPUTS[op]("reference", backend), strict=True))
    except Exception as fault:  # a broken kernel may raise anything
        return f", but fails: {str(fault).splitlines()[0] if str(fault) else type(fault).__name__}", REBUILD
    error = max(float((got - expected).abs().max() / expected.abs().max()) for got, expected in pairs)
    return f", agrees with the reference to {error:.0e}", None if error < _TOLERANCE else REBUILD


def _inputs(backend: str, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Random tensors that require gradients, the same each time, on the device that the backend serves."""
    generator = torch.Generator().manual_seed(0)
    device = "cpu" if backend == "cpu" else "cuda"
    tensors = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    return [tensor.requires_grad_() for tensor in tensors]


def _with_gradients(out: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [out.detach(), *torch.autograd.grad(out.square().mean(), inputs)]


def _selective_scan(backend: str, checked: str) -> list[torch.Tensor]:
    inputs = _inputs(checked, (2, 65, 24), (2, 65, 24), (24, 16), (2, 65, 16), (2, 65, 16))
    u, delta, A, B, C = inputs
    out, _ = ops.selective_scan(
        u, delta, -A.exp(), B, C, delta_softplus=True, return_final_state=True, backend=backend
    )
    return _with_gradients(out, inputs)


def _causal_conv1d(backend: str, checked: str) -> list[torch.Tensor]:
    inputs = _inputs(checked, (2, 65, 24), (24, 4), (24,))
    x, weight, bias = inputs
    out, _ = ops.causal_conv1d(x, weight, bias, return_final_state=True, backend=backend)
    return _with_gradients(out, inputs)


def _residual_norm(backend: str, checked: str) -> list[torch.Tensor]:
    inputs = _inputs(checked, (2, 65, 24), (2, 65, 24), (24,), (24,))
    residual, update, weight, bias = inputs
    both = ops.residual_norm(residual, update, weight, bias, epsilon=1e-5, rms=False, backend=backend)
    return _with_gradients(torch.cat(both), inputs)


def _ssd(backend: str, checked: str) -> list[torch.Tensor]:
    inputs = _inputs(checked, (2, 65, 4, 24), (2, 65, 4), (2, 65, 2, 16), (2, 65, 2, 16))
    x, decay, B, C = inputs
    out, _ = ops.ssd(x, -decay.exp(), B, C, return_final_state=True, backend=backend)
    return _with_gradients(out, inputs)


def _mamba_step(backend: str, checked: str) -> list[torch.Tensor]:
    device = "cpu" if checked == "cpu" else "cuda"
    with torch.random.fork_rng(devices=[]), torch.no_grad(), ops.use_backend(backend):
        torch.manual_seed(0)
        model = MambaByte(MambaByteConfig(d_model=24, n_layer=2)).to(device)
        first, second = torch.tensor([[7, 200], [0, 255]], device=device)
        if backend == "triton":
            step = model.stepper(model.initial_state(2))
            return [step(first), step(second)]
        logits, state = model.step(first, model.initial_state(2))
        again, state = model.step(second, state)
    return [logits, again] + [tensor for layer in state for tensor in layer if checked == "cpu"]


_OUTPUTS: dict[str, Callable[[str, str], list[torch.Tensor]]] = {
    "selective_scan": _selective_scan,
    "causal_conv1d": _causal_conv1d,
    "residual_norm": _residual_norm,
    "mamba_step": _mamba_step,
    "ssd": _ssd,
}
