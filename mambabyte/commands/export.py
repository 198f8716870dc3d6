"""mambabyte export: a trained model as a folder of safetensors and JSON, to give away."""

import sys

from omegaconf import DictConfig


def run(cfg: DictConfig) -> None:
    """Write ``out``, which ``ckpt=`` of any command takes.

    Raises:
        UserError: the checkpoint cannot be read, or ``out`` not written.
    """
    from mambabyte import checkpoints

    checkpoint = checkpoints.read(cfg.ckpt)
    model, step = checkpoint.build_model(), checkpoint.step
    checkpoints.write_export(model, checkpoint.config, step, cfg.out)
    print(
        f"mambabyte: '{cfg.out}' holds the {model.num_parameters():,} parameters of step {step:,} "
        f"(sha256 {checkpoints.weights_fingerprint(model)})",
        file=sys.stderr,
    )
