"""The body of POST /v1/completions: OpenAI's fields, and a few of ours. What is not obeyed is refused."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mambabyte.config.settings import Settings, setting, suggestion
from mambabyte.errors import UserError
from mambabyte.generation import Row, Sampler
from mambabyte.serving.errors import ApiError
from mambabyte.serving.limits import Limits

MAX_LOGPROBS = 20
MAX_STOPS = 4
MAX_STOP_BYTES = 256
_PROMPT = "prompt must be text, a list of texts, a list of bytes (0 to 255) or a list of such lists"
_SAMPLING = frozenset(each.name for each in fields(Sampler)) - {"sample"}


@dataclass
class CompletionRequest(Settings):
    """The fields that have a meaning of their own; those of `Sampler` go to `sampler`. Tokens are bytes.

    Args:
        max_tokens: the most bytes to write for each choice.
        n: choices for each prompt.
        logprobs: how many of the likeliest bytes are told beside each byte; None tells no probabilities.
        echo: whether a choice begins with its prompt.
    """

    model: str = ""
    prompt: Any = ""
    max_tokens: int = setting(default=16, at_least=0, at_most=10**12)
    n: int = setting(default=1, at_least=1, at_most=10**6)
    best_of: int | None = setting(default=None, at_least=1, at_most=10**6)
    stop: Any = None
    logprobs: int | None = setting(default=None, at_least=0, at_most=MAX_LOGPROBS)
    echo: bool = False
    stream: bool = False
    stream_options: dict[str, bool] | None = None
    suffix: str = ""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] | None = None
    user: str = ""  # has no effect, as with OpenAI
    _sampler: Sampler = field(default_factory=lambda: Sampler(temperature=1.0))
    _seeded: bool = False

    @classmethod
    def parse(cls, body: Any, limits: Limits) -> CompletionRequest:
        """The request in a decoded body. Null is the same as a field that is left out.

        Raises:
            ApiError: it cannot be obeyed; the sentence names the field.
        """
        if not isinstance(body, dict):
            raise ApiError(400, "the body must be a JSON object")
        request = cls()
        known = {each.name for each in fields(cls) if not each.name.startswith("_")} | _SAMPLING
        for key, value in body.items():
            if key not in known:
                message = f"there is no field '{key[:80]}'{suggestion(key[:80], known)}"
                raise ApiError(400, message, param=key[:80], code="unknown_field")
            if value is None:
                continue
            try:
                setattr(request._sampler if key in _SAMPLING else request, key, value)
            except UserError as refusal:
                raise ApiError(400, _shortened(str(refusal)), param=key) from refusal
        request._seeded = body.get("seed") is not None
        request._check(limits)
        return request

    def _check(self, limits: Limits) -> None:
        def refuse(param: str, message: str) -> None:
            raise ApiError(400, message, param=param)

        if self.max_tokens > limits.max_completion_bytes:
            refuse("max_tokens", f"max_tokens is at most {limits.max_completion_bytes:,} on this server")
        if self.best_of not in (None, self.n):
            refuse("best_of", "best_of is not supported: leave it out, or set it to n")
        if self.suffix:
            refuse("suffix", "suffix is not supported: the model only goes on from a prompt")
        if self.presence_penalty or self.frequency_penalty:
            param = "presence_penalty" if self.presence_penalty else "frequency_penalty"
            refuse(param, f"{param} is not supported: use repetition_penalty")
        if self.logit_bias:
            refuse("logit_bias", "logit_bias is not supported: leave it out")
        if self.stream_options is not None:
            if not self.stream:
                refuse("stream_options", "stream_options needs stream=true")
            for key, value in self.stream_options.items():
                if key != "include_usage" and (key != "include_obfuscation" or value):
                    refuse("stream_options", f"stream_options.{key[:80]} is not supported: leave it out")
        for prompt in (prompts := self.prompts()):
            if len(prompt) > limits.max_prompt_bytes:
                limit = f"{limits.max_prompt_bytes:,} bytes on this server"
                refuse("prompt", f"a prompt is at most {limit}, not {len(prompt):,}")
            if limits.max_length is not None and len(prompt) + self.max_tokens > limits.max_length:
                asked = f"{len(prompt):,} and {self.max_tokens:,}"
                limit = f"at most {limits.max_length:,} together for this model"
                refuse("max_tokens", f"a prompt's bytes and max_tokens are {limit}, not {asked}")
        if len(prompts) * self.n > limits.max_rows:
            asked = f"{len(prompts) * self.n:,} choices"
            refuse("n" if self.n > 1 else "prompt", f"{asked} are too many: {limits.max_rows:,} at most here")
        self.stops()

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.get("include_usage"))

    def prompts(self) -> list[bytes]:
        """The prompts.

        Raises:
            ApiError: they are no text and no bytes.
        """
        prompt = self.prompt
        if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and _is_byte(prompt[0])):
            return [_prompt_bytes(prompt)]
        if isinstance(prompt, list) and prompt:
            return [_prompt_bytes(each) for each in prompt]
        raise ApiError(400, _PROMPT, param="prompt")

    def stops(self) -> list[bytes]:
        """The stop strings.

        Raises:
            ApiError: too many, too long, empty, or of another type.
        """
        stops = [] if self.stop is None else self.stop if isinstance(self.stop, list) else [self.stop]
        if len(stops) > MAX_STOPS or not all(isinstance(each, str) and each for each in stops):
            raise ApiError(400, f"stop must be text or a list of at most {MAX_STOPS} texts", param="stop")
        encoded = [_encoded(each, "stop") for each in stops]
        if any(len(each) > MAX_STOP_BYTES for each in encoded):
            raise ApiError(400, f"a stop string is at most {MAX_STOP_BYTES} bytes", param="stop")
        return encoded

    def rows(self) -> list[Row]:
        """A row for each choice of one prompt. Without a seed, each call draws another."""
        sampler = self._sampler if self._seeded else replace(self._sampler, seed=secrets.randbelow(2**32))
        # Filters that keep everything need not be computed.
        sampler.top_p = None if sampler.top_p == 1 else sampler.top_p
        sampler.min_p = sampler.min_p or None
        stops = self.stops()
        return [Row(replace(sampler, sample=i), self.max_tokens, stops) for i in range(self.n)]


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _prompt_bytes(prompt: Any) -> bytes:
    if isinstance(prompt, str):
        return _encoded(prompt, "prompt")
    if not isinstance(prompt, list) or not all(map(_is_byte, prompt)):
        raise ApiError(400, _PROMPT, param="prompt")
    try:
        return bytes(prompt)
    except (ValueError, OverflowError) as error:
        raise ApiError(400, _PROMPT, param="prompt") from error


def _encoded(text: str, param: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        message = f"{param} holds half of a surrogate pair, which is no text: send a list of bytes"
        raise ApiError(400, message, param=param) from error


def _shortened(sentence: str) -> str:
    return sentence if len(sentence) <= 300 else f"{sentence[:300]}…"
