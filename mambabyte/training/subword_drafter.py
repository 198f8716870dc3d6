"""Training a subword drafter: byte-pair encoding and a small Mamba over it, on the data of a byte model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from mambabyte.data import ByteCorpus
from mambabyte.errors import UserError
from mambabyte.generation.speculative.subword_tokenizer import SubwordTokenizer
from mambabyte.models.subword_mamba import SubwordMamba, subword_config
from mambabyte.runtime.units import counted
from mambabyte.training.subword_settings import SubwordTraining

_TOKENIZER_BYTES = 20_000_000  # of the corpus, which suffice to learn merges
_DOCUMENT_BYTES = 1 << 20  # of a document that are held at a time


@dataclass(frozen=True)
class TrainedDrafter:
    """bits_per_byte: of the last tenth of the training windows, the subwords' bits over their bytes."""

    model: SubwordMamba
    tokenizer: SubwordTokenizer
    bits_per_byte: float


def train_subword_drafter(
    corpus: ByteCorpus, settings: SubwordTraining, device: torch.device, progress: Callable[[int, int], None]
) -> TrainedDrafter:
    """Train on a corpus.

    Args:
        progress: called with the steps that are done and those to do.

    Raises:
        UserError: the corpus is shorter than a window, or the loss is not finite.
    """
    tokenizer = SubwordTokenizer.trained(_beginning(corpus), settings.vocabulary)
    tokens = np.concatenate([tokenizer.encode(part) for part in _parts(corpus)]).astype(np.uint16)
    window = settings.context_length + 1
    if len(tokens) < window:
        raise UserError(
            f"the data has {counted(len(tokens), 'subword')}, fewer than a window of {window}: set a shorter "
            "context_length"
        )
    lengths = np.array([len(token) for token in tokenizer.token_bytes])
    torch.manual_seed(settings.seed)
    config = subword_config(settings.d_model, settings.n_layer, settings.d_state)
    model = SubwordMamba(config, tokenizer.vocabulary).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.max_steps))
    draws = np.random.default_rng(settings.seed)
    bits = bytes_read = 0.0
    for step in range(settings.max_steps):
        first = draws.integers(len(tokens) - window + 1, size=settings.batch_size)
        batch = tokens[first[:, None] + np.arange(window)]
        inputs = torch.from_numpy(batch.astype(np.int64)).to(device)
        loss = cross_entropy(model(inputs[:, :-1]).flatten(0, 1), inputs[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step >= settings.max_steps * 9 // 10:
            bits += loss.item() / math.log(2) * batch[:, 1:].size
            bytes_read += lengths[batch[:, 1:]].sum()
        progress(step + 1, settings.max_steps)
    if not math.isfinite(bits):
        raise UserError("the loss became NaN or infinite: set a smaller learning_rate")
    return TrainedDrafter(model.eval(), tokenizer, bits / bytes_read)


def _rate(step: int, steps: int) -> float:
    """The learning rate over its peak."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


def _parts(corpus: ByteCorpus) -> Iterator[bytes]:
    for index in range(corpus.num_documents):
        document = corpus.document(index)
        for first in range(0, len(document), _DOCUMENT_BYTES):
            yield document[first : first + _DOCUMENT_BYTES].tobytes()


def _beginning(corpus: ByteCorpus) -> Iterator[bytes]:
    """The first bytes of the corpus, for the tokenizer."""
    left = _TOKENIZER_BYTES
    for part in _parts(corpus):
        if left <= 0:
            return
        yield part[:left]
        left -= len(part)
