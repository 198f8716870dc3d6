"""A training step of MambaByte-353M, L=8192, bf16 autocast: ours against MambaLMHeadModel in the same
plain loop.

A step is forward, backward and fused AdamW, from the same weights. Micro-batch 4, which is compared, comes
first; a profile of it goes to profile.txt. MFU counts the model's own operations, three times those of
inference.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import peers
import torch
from stage import Stage, main
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mambabyte.models import MambaByteConfig
from mambabyte.training.planning.peak_flops import peak_flops

COMPARED = 4
SIZES = (COMPARED, 8, 2, 1)


def run(stage: Stage) -> None:
    config = stage.choose(
        MambaByteConfig(d_model=1024, n_layer=53), MambaByteConfig(d_model=16, n_layer=2, d_state=4)
    )
    length = stage.choose(8192, 16)
    torch.manual_seed(0)
    with stage.device:
        ours = config.build()
        bytes = torch.randint(0, 256, (max(SIZES), length + 1))
    weights = {name: tensor.cpu().clone() for name, tensor in ours.state_dict().items()}
    # what the peak would allow
    seconds_per_byte = ours.flops_per_byte(length).training / peak_flops(stage.device, "bf16").flops
    losses = {}
    with stage.case("ours"):
        losses["ours"] = Loop(stage, "ours", ours, bytes).measure(seconds_per_byte)
    del ours
    with stage.case("peer"):
        peer = peers.language_model(stage.dry, config, stage.device, torch.float32)
        peer.load_state_dict(weights)
        losses["peer"] = Loop(stage, "peer", peer, bytes).measure(seconds_per_byte)
    if len(losses) == 2:
        stage.record("losses", difference=(abs(losses["ours"] - losses["peer"]), "nats"))


class Loop:
    """A plain training loop over the same bytes again and again."""

    def __init__(self, stage: Stage, name: str, model: nn.Module, bytes: Tensor) -> None:
        self.stage, self.name, self.model, self.bytes = stage, name, model, bytes
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def loss(self, batch: int) -> Tensor:
        with torch.autocast(self.stage.device.type, torch.bfloat16):
            found = self.model(self.bytes[:batch, :-1])
        logits = getattr(found, "logits", found).float()
        return cross_entropy(logits.flatten(0, 1), self.bytes[:batch, 1:].flatten())

    def step(self, batch: int) -> None:
        self.optimizer.zero_grad()
        self.loss(batch).backward()
        self.optimizer.step()

    def measure(self, seconds_per_byte: float) -> float:
        """The first loss; times, rates and memory are recorded."""
        stage = self.stage
        with torch.no_grad():
            first = self.loss(1).item()
        for batch in SIZES:
            case = f"{self.name} micro-batch {batch}"
            with stage.case(case):
                step = partial(self.step, batch)
                peak = stage.peak_gib(step, total=True)
                taken = stage.milliseconds(step, repeats=5, needs=stage.choose(10, 0))
                rate = 1e3 * batch * (self.bytes.shape[1] - 1) / taken
                stage.record(
                    case, step=(taken, "ms"), rate=(rate / 1e3, "kB/s"), mfu=(rate * seconds_per_byte, ""),
                    peak=(peak, "GiB"),
                )  # fmt: skip
                if batch == COMPARED:
                    self.profile(step)
        return first

    def profile(self, step: Callable[[], None]) -> None:
        from torch.profiler import ProfilerActivity, profile

        on_cuda = self.stage.device.type == "cuda"
        activity = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
        with profile(activities=[activity]) as profiler:
            step()
            if on_cuda:
                torch.cuda.synchronize()
        averages = profiler.key_averages()
        table = averages.table(sort_by=f"self_{activity.name.lower()}_time_total", row_limit=40)
        with (self.stage.folder / "profile.txt").open("a") as file:
            file.write(f"{self.name}, one step at micro-batch {COMPARED}\n{table}\n")


if __name__ == "__main__":
    main("step", run)
