"""The texts of a command: a step with drafts may give one of them several bytes, the last one too."""

import pytest
import torch

from mambabyte.generation import Batch, Sampler, generate, read
from mambabyte.generation.continuations import Continuation, written_together
from mambabyte.generation.outputs import ShownText
from mambabyte.generation.prompts import Prompt
from mambabyte.generation.speculative import Drafting, FixedLengths
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
