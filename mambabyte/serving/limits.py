"""What one server takes on."""

from dataclasses import dataclass

from mambabyte.config.settings import Settings, setting


@dataclass
class Limits(Settings):
    """What is refused, so that no client takes the memory or the time of the others.

    Args:
        max_prompt_bytes: of each prompt.
        max_completion_bytes: of each text that is written.
        max_rows: texts that are written at the same time; also the most of one request.
        max_queue: requests that wait until there is room for theirs.
        max_body_bytes: of a request's JSON.
        max_length: of a prompt and its text together, where the model has a limit of its own: a row beyond it
            would end those of all clients.
    """

    max_prompt_bytes: int = setting(default=100_000, at_least=1, at_most=10**12)
    max_completion_bytes: int = setting(default=16_384, at_least=1, at_most=10**12)
    max_rows: int = setting(default=32, at_least=1, at_most=100_000)
    max_queue: int = setting(default=64, at_least=0, at_most=10**6)
    max_body_bytes: int = setting(default=2**23, at_least=1, at_most=10**12)
    max_length: int | None = setting(default=None, at_least=1)
