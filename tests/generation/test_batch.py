"""Rows that are continued together: each as if alone, whenever the others come and go."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mambabyte.errors import UserError
from mambabyte.generation import Batch, Row, Sampler, generate, load_context, read, read_pieces, save_context
from mambabyte.models import ByteLM
from tests.models.every_model import MODELS

PROMPTS = [b"ab", b"\xff\x00 a longer prompt", b"a", b"\n"]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> ByteLM:
    torch.manual_seed(0)
    return sharpened(MODELS[request.param].build())


def sharpened(model: ByteLM) -> ByteLM:
    """With logits far enough apart for rounding to decide nothing."""
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    return model.eval()


def alone(model: ByteLM, prompt: bytes, length: int, sampler: Sampler) -> bytes:
    return bytes(generate(model, prompt, length, sampler))


def collect(batch: Batch) -> dict[int, bytes]:
    texts: dict[int, bytes] = {}
    for drawn in batch:
        texts[id(drawn.row)] = texts.get(id(drawn.row), b"") + drawn.text
    return texts


def test_prompts_of_different_lengths_are_continued_as_alone(model: ByteLM) -> None:
    batch = Batch(model)
    samplers = [Sampler(0), Sampler(1.0, seed=1), Sampler(1.0, seed=1, sample=1), Sampler(0.7, top_k=9)]
    rows = [Row(sampler, 12 + i) for i, sampler in enumerate(samplers)]
    for prompt, row in zip(PROMPTS, rows, strict=True):
        batch.add(read(model, prompt), [row])
    texts = collect(batch)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert texts[id(row)] == alone(model, prompt, row.length, row.sampler)
        assert row.finished == "length" and row.drawn == row.length


def test_greedy_rows_are_the_argmax_of_forward(model: ByteLM) -> None:
    batch, rows = Batch(model), [Row(Sampler(0), 9) for _ in PROMPTS]
    for prompt, row in zip(PROMPTS, rows, strict=True):
        batch.add(read(model, prompt), [row])
    texts = collect(batch)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        text = prompt + texts[id(row)]
        with torch.no_grad():
            expected = bytes(model(text)[0].argmax(-1).tolist())
        assert expected[len(prompt) - 1 : -1] == text[len(prompt) :]


def test_rows_come_and_go(model: ByteLM) -> None:
    batch, first, second, late = Batch(model), *(Row(Sampler(1.0, seed=s), 20) for s in range(3))
    batch.add(read(model, b"one"), [first, second])
    texts: dict[int, bytes] = {}
    for step in range(40):
        if step == 5:
            batch.remove(first)
            batch.remove(first)  # once is enough
            batch.add(read(model, b"another"), [late])
        for drawn in batch.step() if batch.rows else []:
            texts[id(drawn.row)] = texts.get(id(drawn.row), b"") + drawn.text
    assert batch.rows == []
    assert texts[id(first)] == alone(model, b"one", 20, first.sampler)[:5]
    assert texts[id(second)] == alone(model, b"one", 20, second.sampler)
    assert texts[id(late)] == alone(model, b"another", 20, late.sampler)


def test_a_prompt_read_in_pieces_is_the_same_prompt(model: ByteLM) -> None:
    text = bytes(range(256)) * 3
    whole = read(model, text)
    pieces = list(read_pieces(model, [text[:1], b"", text[1:300], text[300:301], text[301:]]))
    assert len(pieces) == 4
    last = pieces[-1]
    assert (last.length, last.tail) == (whole.length, whole.tail) == (768, text[-64:])
    torch.testing.assert_close(last.logits, whole.logits, atol=1e-3, rtol=1e-4)  # of logits up to 100
    assert alone(model, text, 8, Sampler(0)) == bytes(generate(model, b"", 8, Sampler(0), context=last))


def test_a_saved_state_goes_on_as_often_as_one_likes(model: ByteLM, tmp_path) -> None:
    path = tmp_path / "a.state"
    save_context(path, model, read(model, b"a prompt"))
    for _ in range(2):
        context = load_context(path, model)
        assert context.length == 8 and context.tail == b"a prompt"
        more = bytes(generate(model, b" and more", 10, Sampler(1.0), context=context))
        assert more == alone(model, b"a prompt and more", 10, Sampler(1.0))


def test_the_context_at_the_end_has_all_that_was_drawn(model: ByteLM) -> None:
    batch = Batch(model)
    kept, other = Row(Sampler(1.0), 7, keep_context=True), Row(Sampler(1.0, seed=1), 9)
    batch.add(read(model, b"x"), [other, kept])
    text = b"x" + collect(batch)[id(kept)]
    assert kept.context is not None and other.context is None
    assert kept.context.tail == text and kept.context.length == 8
    assert bytes(generate(model, b"", 8, Sampler(0), context=kept.context)) == alone(
        model, text, 8, Sampler(0)
    )


def test_a_row_that_is_let_go_keeps_its_context_so_far(model: ByteLM) -> None:
    batch, row, other = Batch(model), Row(Sampler(1.0), 20, keep_context=True), Row(Sampler(0), 20)
    batch.add(read(model, b"ab"), [other, row])
    text = b"ab" + b"".join(d.text for _ in range(5) for d in batch.step() if d.row is row)
    batch.remove(row)
    assert row.finished is None and batch.rows == [other]
    assert row.context is not None and (row.context.length, row.context.tail) == (7, text)
    more = bytes(generate(model, b"", 8, Sampler(0), context=row.context))
    assert more == alone(model, text, 8, Sampler(0))


def test_a_row_of_no_bytes_has_ended_before_it_begins(model: ByteLM) -> None:
    batch, row, none = Batch(model), Row(Sampler(0), 2), Row(Sampler(0), 0)
    batch.add(read(model, b"x"), [none, row])
    assert collect(batch) == {id(row): alone(model, b"x", 2, row.sampler)}
    assert none.finished == "length"


def test_a_stop_string_ends_a_row(model: ByteLM) -> None:
    whole = alone(model, b"ab", 40, Sampler(1.0))
    stop = whole[10:13]
    row, batch = Row(Sampler(1.0), 40, [stop, b"never this"], keep_context=True), Batch(model)
    batch.add(read(model, b"ab"), [row])
    assert collect(batch)[id(row)] == whole[: whole.index(stop)]
    assert row.finished == "stop" and row.context is not None
    assert row.context.tail.endswith(stop)


class TestSavedStates:
    @pytest.fixture
    def mamba(self) -> ByteLM:
        torch.manual_seed(0)
        return sharpened(MODELS["mambabyte"].build())

    def test_a_state_of_other_weights_is_refused(self, mamba: ByteLM, tmp_path) -> None:
        path = tmp_path / "a.state"
        save_context(path, mamba, read(mamba, b"a"))
        with torch.no_grad():
            mamba.lm_head.weight[0, 0] += 1
        with pytest.raises(UserError, match="the state of a model with other weights"):
            load_context(path, mamba)

    def test_no_file_is_a_sentence(self, mamba: ByteLM, tmp_path) -> None:
        with pytest.raises(UserError, match=r"there is no file '.*none' with a saved state"):
            load_context(tmp_path / "none", mamba)
        with pytest.raises(UserError, match="the state cannot be written to"):
            save_context(tmp_path / "no" / "folder", mamba, read(mamba, b"a"))

    def test_other_files_are_refused(self, mamba: ByteLM, tmp_path) -> None:
        path = tmp_path / "a.state"
        path.write_bytes(b"no state")
        with pytest.raises(UserError, match="is damaged and cannot be read"):
            load_context(path, mamba)
        save_context(path, mamba, read(mamba, b"a"))
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(UserError, match="is damaged and cannot be read"):
            load_context(path, mamba)

    @pytest.mark.parametrize(
        "name", ["mambabyte-ngrams", "transformer-window", "megabyte", "lstm", "spacebyte"]
    )
    def test_what_is_no_state_of_the_model_is_refused(self, name: str, tmp_path) -> None:
        model, path = MODELS[name].build().eval(), tmp_path / "a.state"
        save_context(path, model, read(model, b"a prompt of some bytes"))
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        whole = load_file(path)
        damaged = [({**whole, key: tensor.bool()}, {}) for key, tensor in whole.items() if key != "logits"]
        damaged += [(whole, {"length": length}) for length in ("-5", "3", "[" * 10**5, "9" * 5000, "true")]
        damaged += [(whole, {"tail": tail}) for tail in ("zz", "00" * 65)]
        if name == "transformer-window":  # caches of different lengths
            damaged.append(({**whole, "state.1.0": whole["state.1.0"].repeat(1, 2, 1, 1)}, {}))
        if name == "megabyte":  # bytes that are none
            damaged.append(({**whole, "state.0.1": torch.full_like(whole["state.0.1"], 256)}, {}))
        for tensors, changes in damaged:
            save_file(tensors, path, {**metadata, **changes})
            with pytest.raises(UserError, match="is damaged"):
                load_context(path, model)
        save_file(whole, path, metadata)
        assert load_context(path, model).length == 22
