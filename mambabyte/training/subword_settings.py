"""The settings of a subword drafter's training, without torch."""

from dataclasses import dataclass

from mambabyte.config.settings import Settings, setting


@dataclass(kw_only=True)
class SubwordTraining(Settings):
    """How a subword drafter is trained: AdamW, a linear warm-up over a tenth of the steps and a cosine to a
    tenth of the peak.

    vocabulary: tokens, at most.
    context_length: tokens of a window, batch_size windows of a step.
    """

    vocabulary: int = setting(at_least=257, at_most=65536)
    d_model: int = setting(at_least=1, at_most=10**5)
    n_layer: int = setting(at_least=1, at_most=10**3)
    d_state: int = setting(at_least=1, at_most=10**4)
    context_length: int = setting(at_least=1, at_most=10**6)
    batch_size: int = setting(at_least=1, at_most=10**6)
    max_steps: int = setting(at_least=1, at_most=10**9)
    learning_rate: float = setting(above=0, at_most=1)
    seed: int = setting(at_least=0, below=2**32)
