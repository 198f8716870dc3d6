"""mambabyte generate: continues a prompt, printing text as soon as its bytes are complete."""

from itertools import chain

from omegaconf import DictConfig

from mambabyte.errors import UserError


def run(cfg: DictConfig) -> None:
    """Print the prompt and its continuation on stdout.

    Raises:
        UserError: a setting is out of range, or the checkpoint cannot be read.
    """
    if cfg.bytes < 1:
        raise UserError(f"bytes must be 1 or more, not {cfg.bytes}")
    from mambabyte import checkpoints
    from mambabyte.generation import Sampler, decode_stream, generate
    from mambabyte.runtime.devices import choose_device

    sampler = Sampler(cfg.temperature, cfg.top_k, cfg.top_p, cfg.seed)
    model = checkpoints.load_model(cfg.ckpt).to(choose_device(cfg.device))
    prompt = str(cfg.prompt).encode("utf-8", "surrogateescape")
    for text in decode_stream(chain(prompt, generate(model, prompt, cfg.bytes, sampler))):
        print(text, end="", flush=True)
    print()
