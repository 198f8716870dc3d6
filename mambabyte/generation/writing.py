"""Texts that continue prompts, from the prompts to where the texts go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from mambabyte.generation.batch import Batch
from mambabyte.generation.context import Context
from mambabyte.generation.continuations import Continuation, Spent, written_alone, written_together
from mambabyte.generation.outputs import Output
from mambabyte.generation.prompts import Prompt
from mambabyte.generation.sampler import Sampler
from mambabyte.generation.speculative.drafting import Drafting
from mambabyte.models import ByteLM
from mambabyte.runtime.signals import interrupt_noted


@dataclass(frozen=True)
class Writing:
    """How texts are to be written.

    Args:
        sampler: of each prompt's first text; the others differ in its `sample`.
        length: the most bytes of a text, at least 1.
        stop: strings before which a text ends.
        samples: texts for each prompt.
        at_once: texts that are written together; another begins when one ends.
        weights: see `generate`.
        keep_context: whether the model's state after a text is wanted.
        drafting: guesses at the next bytes: see `Batch`.
    """

    model: ByteLM
    sampler: Sampler
    length: int
    stop: Sequence[bytes] = ()
    samples: int = 1
    at_once: int = 32
    weights: str = "fp32"
    keep_context: bool = False
    drafting: Drafting | None = None

    def batch(self) -> Batch:
        return Batch(self.model, self.weights, self.drafting)

    def texts(
        self, prompts: Sequence[Prompt], before: Context | None, output: Output, spent: Spent
    ) -> tuple[Context | None, bool]:
        """Read the prompts, each after the context `before`, and write the texts to `output`. Ctrl+C ends
        them, and closes it too.

        Returns:
            The context after the last text with `keep_context`, and whether Ctrl+C came.

        Raises:
            UserError: a prompt cannot be read, `output` cannot be written, or the model gives no
                probabilities.
        """
        texts: list[Continuation] = []
        stopped = True
        try:
            rows = self._rows(prompts, before, texts, output, spent)
            first = next(rows)  # before Ctrl+C is only noted: a prompt can be long
            with interrupt_noted() as interrupted:
                if len(prompts) * self.samples == 1 and not self.keep_context and self.drafting is None:
                    written = written_alone(self.model, *first, self.weights, interrupted)
                else:
                    every = chain([first], rows)
                    written = written_together(self.batch(), every, self.at_once, interrupted)
                for text, data in spent.writing(written):
                    output.write(text, data)
                stopped = interrupted()
        except KeyboardInterrupt:
            for text in texts:
                if text.finished is None:
                    output.write(text, text.interrupt())
        spent.written_bytes += sum(text.drawn for text in texts)
        output.close(spent, stopped)
        return (texts[-1].context if texts else None), stopped

    def nothing(
        self, prompts: Sequence[Prompt], before: Context | None, output: Output, spent: Spent
    ) -> tuple[Context | None, bool]:
        """As `texts`, but only read the prompts, one after the other."""
        context, stopped = before, True
        try:
            for prompt in prompts:
                context, _ = spent.read(self.model, prompt, context)
            stopped = False
        except KeyboardInterrupt:
            context = None
        output.close(spent, stopped)
        return context, stopped

    def _rows(
        self,
        prompts: Sequence[Prompt],
        before: Context | None,
        texts: list[Continuation],
        output: Output,
        spent: Spent,
    ) -> Iterator[tuple[Context, Continuation]]:
        """The texts to be written, noted in `texts`. A prompt is read when its first one can begin."""
        for prompt in prompts:
            context, count = spent.read(self.model, prompt, before)
            for sample in range(self.samples):
                sampler = replace(self.sampler, sample=sample)
                row = Continuation(
                    len(texts), prompt, count, sampler, self.length, self.stop, self.keep_context
                )
                texts.append(row)
                output.begin(row)
                yield context, row
