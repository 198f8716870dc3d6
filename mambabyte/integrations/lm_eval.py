"""An adapter for EleutherAI's lm-evaluation-harness (`pip install 'mambabyte[hf]'`).

    python -m mambabyte.integrations.lm_eval run --model mambabyte --model_args ckpt=runs/tiny --tasks ...

is `lm_eval` with the model `mambabyte` registered; for everything else see its own documentation.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from mambabyte import checkpoints
from mambabyte.errors import UserError
from mambabyte.evaluation.protocols import FIRST_BYTE_NATS, Protocol, scored_spans
from mambabyte.generation import Sampler, generate
from mambabyte.runtime.devices import choose_device

_DEFAULT_BYTES = 256  # to generate, if a task sets no limit
_HARNESS_DEVICE = "cuda:0"  # its default


@register_model("mambabyte")
class ByteHarness(LM):
    """Scores and continues text as UTF-8 bytes; a text's first byte is charged 8 bits, as in `eval`.

    Args:
        ckpt: a run directory, a checkpoint, the folder of a model, or ``hub:owner/name``.
        context_length: of the windows of rolling log-likelihoods (protocol ``disjoint``); by default that of
            training.
        batch_size: windows or requests in one forward pass.
        device: as PyTorch names it, or ``auto``. The harness's own default, ``cuda:0``, counts as ``auto``.
    """

    def __init__(
        self,
        ckpt: str,
        context_length: int | None = None,
        batch_size: int | str | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self._device = choose_device(device if device and device != _HARNESS_DEVICE else "auto")
        checkpoint = checkpoints.read(ckpt)
        self._model = checkpoint.build_model().to(self._device)
        self._context_length = int(context_length or checkpoint.context_length)
        given = str(batch_size)
        self._batch_size = int(given) if given.isdigit() else max_batch_size or 8

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def tokenizer_name(self) -> str:
        return "bytes"

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Each continuation's log-likelihood in nats, and whether all its bytes are the likeliest ones.

        A model whose state grows sees at most the last ``context_length`` bytes before a byte.
        """
        pairs = [tuple(_encode(text) for text in request.args) for request in requests]
        order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
        answers: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            answers.update(zip(chosen, self._score([pairs[i] for i in chosen]), strict=True))
        return [answers[i] for i in range(len(pairs))]

    @torch.no_grad()
    def _score(self, pairs: Sequence[tuple[bytes, ...]]) -> Iterator[tuple[float, bool]]:
        texts = [context + continuation for context, continuation in pairs]
        if not self._model.recurrent:
            kept = [max(self._context_length, len(continuation)) + 1 for _, continuation in pairs]
            texts = [text[-length:] for text, length in zip(texts, kept, strict=True)]
        block = torch.zeros(len(texts), max(2, *map(len, texts)), dtype=torch.long)
        for row, text in zip(block, texts, strict=True):
            row[: len(text)] = torch.tensor(list(text))
        logits = self._model(block[:, :-1].to(self._device)).double().log_softmax(-1).cpu()
        scores = logits.gather(-1, block[:, 1:, None])[..., 0]
        likeliest = logits.argmax(-1) == block[:, 1:]
        for row, (text, (_, continuation)) in enumerate(zip(texts, pairs, strict=True)):
            begin, end = len(text) - len(continuation), len(text)
            without_context = begin == 0 and end > 0
            places = slice(max(begin, 1) - 1, max(end, 1) - 1)
            log_likelihood = float(scores[row, places].sum()) - FIRST_BYTE_NATS * without_context
            yield log_likelihood, bool(likeliest[row, places].all()) and not without_context

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, as `mambabyte eval --bpb protocol=disjoint` measures it."""
        documents = [np.frombuffer(_encode(request.args[0]), np.uint8) for request in requests]
        found = [-FIRST_BYTE_NATS if len(document) else 0.0 for document in documents]
        protocol = Protocol("disjoint", self._context_length, batch_size=self._batch_size)
        for batch in scored_spans(self._model, documents, protocol):
            for span in batch:
                found[span.document] -= float(span.nats.sum())
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to but without the first of its stop texts."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        limit = int(settings.get("max_gen_toks", _DEFAULT_BYTES))
        until = settings.get("until") or []
        stops = [_encode(stop) for stop in ([until] if isinstance(until, str) else until) if stop]
        sampling = settings.get("do_sample", float(settings.get("temperature") or 0) > 0)
        temperature = float(settings.get("temperature") or 1.0) if sampling else 0.0
        sampler = Sampler(temperature, settings.get("top_k"), settings.get("top_p"))
        written = bytearray()
        for byte in generate(self._model, _encode(context), limit, sampler):
            written.append(byte)
            if stop := next((stop for stop in stops if written.endswith(stop)), None):
                del written[-len(stop) :]
                break
        return written.decode("utf-8", "replace")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as fault:
        sys.exit(f"mambabyte: {fault}")
