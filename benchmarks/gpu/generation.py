"""Greedy generation, batch 1, with weights in bf16: ours against mamba_ssm's `generate(cg=True)`, 353M and
972M.

As many bytes as the stage has time for, 8,192 at most; the seconds for 8,192 are the rate's. Ours is
measured with weights=bf16 of the same call that `mambabyte generate` makes, or, where that is refused, as
a bf16 model.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import peers
import torch
from stage import Stage, main

from mambabyte.errors import UserError
from mambabyte.generation import Sampler, generate
from mambabyte.models import MambaByte, MambaByteConfig

PROMPT = b"It was the best of times, "
WHOLE = 8192  # bytes, as in the paper's table of generation times
MODELS = {
    "972M": MambaByteConfig(d_model=1792, n_layer=48),
    "353M": MambaByteConfig(d_model=1024, n_layer=53),
}
TOY = MambaByteConfig(d_model=16, n_layer=2, d_state=4)


def run(stage: Stage) -> None:
    share = stage.seconds_left / (2 * len(MODELS))
    for name, config in stage.choose(MODELS, {"toy": TOY}).items():
        torch.manual_seed(0)
        with stage.device:
            ours = config.build().eval()
        weights = {key: tensor.cpu().clone() for key, tensor in ours.state_dict().items()}
        with stage.case(f"{name} ours"):
            rate(stage, f"{name} ours", our_generation(stage, name, ours), share)
        del ours
        with stage.case(f"{name} peer"):
            peer = peers.language_model(stage.dry, config, stage.device, torch.bfloat16).eval()
            peer.load_state_dict(weights)
            prompt = torch.tensor([list(PROMPT)], device=stage.device)
            peers.capture(stage.dry, peer, prompt.shape[1], prompt.shape[1] + WHOLE)

            def theirs(count: int, peer=peer, prompt=prompt) -> None:
                peer.generate(prompt, max_length=prompt.shape[1] + count, cg=True, top_k=1)

            rate(stage, f"{name} peer", theirs, share)
            del peer, theirs


def our_generation(stage: Stage, name: str, model: MambaByte) -> Callable[[int], None]:
    """A function that generates so many bytes."""
    greedy, weights = Sampler(temperature=0), "bf16"
    try:
        list(generate(model, PROMPT, 2, greedy, weights))
    except UserError as refusal:
        stage.note(f"{name} weights=bf16", f"refused: {refusal}")
        model, weights = model.bfloat16(), "fp32"
    return lambda count: list(generate(model, PROMPT, count, greedy, weights))


def rate(stage: Stage, case: str, produce: Callable[[int], None], seconds: float) -> None:
    """Generate for about so many seconds, after a warm-up that compiles and captures."""

    def timed(count: int) -> float:
        if stage.device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        produce(count)
        if stage.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    short, long = stage.choose((64, 320), (2, 6))
    timed(short)
    # the difference leaves out the prompt and what is prepared once
    per_byte = max(0.0, timed(long) - timed(short)) / (long - short)
    affordable = int(min(seconds, stage.seconds_left) / max(per_byte, 1e-6) / 2)
    if affordable > long and not stage.dry:
        count = min(affordable, WHOLE)
        per_byte = timed(count) / count
        stage.note(case, f"{count} bytes generated")
    stage.record(case, byte=(1e3 * per_byte, "ms"), whole=(WHOLE * per_byte, f"s for {WHOLE:,} bytes"))


if __name__ == "__main__":
    main("generation", run)
