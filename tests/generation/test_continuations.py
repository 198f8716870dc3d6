"""The texts of a command: a step with drafts may give one of them several bytes, the last one too."""

from dataclasses import replace

import pytest
import torch

from mambabyte.errors import UserError
from mambabyte.generation import Batch, Sampler, generate, read
from mambabyte.generation.continuations import Continuation, Spent, written_together
from mambabyte.generation.outputs import RawBytes, ShownText
from mambabyte.generation.prompts import Prompt
from mambabyte.generation.speculative import Drafting, FixedLengths
from mambabyte.generation.writing import Writing
from tests.generation.speculative.drafters import Knowing, right
from tests.models.test_every_model import MODELS


@pytest.mark.parametrize("length", [26, 27, 28])
def test_a_text_that_ends_within_a_draft_is_shown_whole(length: int, capsys) -> None:
    torch.manual_seed(0)
    model = MODELS["mambabyte"].build().eval()
    text = bytes(generate(model, b"ab", length, Sampler(0, valid_utf8=True)))
    batch = Batch(model, drafting=Drafting(Knowing([text], right), lengths=FixedLengths(4)))
    row = Continuation(0, Prompt(), 2, Sampler(0, valid_utf8=True), length, [], keep_context=False)
    output, written = ShownText(headings=False), b""
    output.begin(row)
    for each, data in written_together(batch, [(read(model, b"ab"), row)], 1, lambda: False):
        assert each is row
        output.write(each, data)
        written += data
    assert written == text
    assert len(capsys.readouterr().out) >= len(text.decode())  # control characters are made visible


@pytest.mark.parametrize("keep_context", [False, True])
def test_more_bytes_than_the_model_has_positions_for_are_refused_at_once(keep_context: bool) -> None:
    model = replace(MODELS["spacebyte"], max_length=30).build().eval()
    most, written = 20 if keep_context else 21, []

    def write(length: int, stop: bytes = b"") -> bytes:
        written.clear()
        stops = [stop] if stop else []
        writing = Writing(model, Sampler(0), length, stops, keep_context=keep_context)
        writing.texts([Prompt(b"ten bytes.")], None, RawBytes(written.append), Spent())
        return b"".join(written)[10:]

    text = write(most)
    assert len(text) == most
    with pytest.raises(UserError, match=rf"has read 10, so bytes={most + 1} .* set bytes={most} or less"):
        write(most + 1)
    assert written == []
    stop = text[5:8]
    assert write(99, stop) == text[: text.index(stop)]
