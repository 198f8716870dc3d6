"""A subword Mamba as the drafter: its tokenizer takes any bytes, and its guesses are of the whole text."""

import json
import os
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mambabyte.data import ByteCorpus
from mambabyte.errors import UserError
from mambabyte.generation import Batch, Row, Sampler, generate, read
from mambabyte.generation.sampler import Draws
from mambabyte.generation.speculative import Drafting
from mambabyte.generation.speculative.subword import (
    SubwordDrafter,
    is_subword_drafter,
    load_subword_drafter,
    save_subword_drafter,
)
from mambabyte.generation.speculative.subword_tokenizer import SubwordTokenizer
from mambabyte.models import MambaByteConfig
from mambabyte.models.subword_mamba import SubwordMamba, subword_config
from mambabyte.training.subword_drafter import train_subword_drafter
from mambabyte.training.subword_settings import SubwordTraining
from tests.generation.speculative.drafters import collect

TEXT = "the cat sat on the mat, the dog sat on the log: déjà vu\n".encode() * 40
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> SubwordTokenizer:
    return SubwordTokenizer.trained([TEXT], 300)


@pytest.fixture(scope="module")
def trained(tokenizer: SubwordTokenizer) -> SubwordMamba:
    torch.manual_seed(0)
    model = SubwordMamba(subword_config(d_model=16, n_layer=2, d_state=4), tokenizer.vocabulary).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


@pytest.mark.parametrize(
    "data",
    [b"", TEXT, bytes(range(256)) * 3, b"  \n\n ", b"\xff\xfe \x00 cat", random.Random(0).randbytes(999)],
)
def test_any_bytes_survive(tokenizer: SubwordTokenizer, data: bytes) -> None:
    tokens = tokenizer.encode(data)
    assert b"".join(tokenizer.token_bytes[token] for token in tokens) == data
    assert len(tokenizer.encode(TEXT)) < len(TEXT) / 2
    assert tokenizer.vocabulary == len(tokenizer.token_bytes) <= 300


def test_long_data_is_encoded_as_if_whole(tokenizer: SubwordTokenizer, monkeypatch) -> None:
    whole = tokenizer.encode(TEXT)
    monkeypatch.setattr("mambabyte.generation.speculative.subword_tokenizer._PIECE", 50)
    np.testing.assert_array_equal(tokenizer.encode(TEXT), whole)


def greedy(model: SubwordMamba, tokenizer: SubwordTokenizer, text: bytes, count: int) -> bytes:
    """The likeliest subwords after the text, by `forward` on all tokens so far."""
    tokens = tokenizer.encode(text).tolist()
    last = tokenizer.token_bytes[tokens[-1]]
    logits = model(torch.tensor([tokens[:-1]]))[0, -1]
    may = [number for number, token in enumerate(tokenizer.token_bytes) if token.startswith(last)]
    tokens[-1] = may[int(logits[may].argmax())]
    while len(found := b"".join(tokenizer.token_bytes[token] for token in tokens)) < len(text) + count:
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return found[len(text) : len(text) + count]


@torch.no_grad()
def test_guesses_follow_from_the_whole_text_whenever_they_are_asked_for(
    trained: SubwordMamba, tokenizer: SubwordTokenizer
) -> None:
    drafter = SubwordDrafter(trained, tokenizer)
    text = TEXT[:30]
    drafter.append(text, 1)
    draws = [Draws(Sampler(0))]
    for more in (b"", b"s", b"at on the", b" ", b"\nA \xff longer", b" one, of many words"):
        text += more
        drafter.push([more])
        stream = drafter.guesses(draws)
        guessed = bytes(guess.byte for _ in range(9) for guess in next(stream) if guess is not None)
        assert guessed == greedy(trained, tokenizer, text, 9), text


def test_a_text_without_boundaries_is_not_held_whole(
    trained: SubwordMamba, tokenizer: SubwordTokenizer, monkeypatch
) -> None:
    drafter, data = (
        SubwordDrafter(trained, tokenizer),
        bytes(random.Random(0).choices(range(33, 256), k=2000)),
    )
    drafter.append(data[:1000], 1)
    encode, encoded = tokenizer.encode, []

    def noted(text: bytes) -> np.ndarray:
        encoded.append(len(text))
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode", noted)
    for byte in data[1000:]:
        drafter.push([bytes([byte])])
        assert next(drafter.guesses([Draws(Sampler(0))])) != [None]
    assert len(encoded) > 1000 and max(encoded[1:]) < 300


def test_texts_are_those_of_plain_decoding(trained: SubwordMamba, tokenizer: SubwordTokenizer) -> None:
    torch.manual_seed(1)
    model = MambaByteConfig(d_model=16, n_layer=1, d_state=4).build().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    batch = Batch(model, drafting=Drafting(SubwordDrafter(trained, tokenizer)))
    prompts, rows = [b"x", TEXT[:50]], [Row(Sampler(1.0, seed=i), 30 + i) for i in range(2)]
    for prompt, row in zip(prompts, rows, strict=True):
        batch.add(read(model, prompt), [row])
    texts = collect(batch)
    for prompt, row in zip(prompts, rows, strict=True):
        assert texts[row] == bytes(generate(model, prompt, row.length, row.sampler))


@pytest.fixture(scope="module")
def settings() -> SubwordTraining:
    return SubwordTraining(
        vocabulary=300, d_model=32, n_layer=1, d_state=4, context_length=32, batch_size=8, max_steps=60,
        learning_rate=1e-2, seed=0,
    )  # fmt: skip


def corpus_of(*documents: bytes) -> ByteCorpus:
    data = np.frombuffer(b"".join(documents), np.uint8)
    ends = np.cumsum([0, *map(len, documents)])
    return ByteCorpus(data, ends, [str(i) for i in range(len(documents))])


def test_training_learns_the_text_and_says_how_well(settings: SubwordTraining, tmp_path) -> None:
    steps: list[int] = []
    trained = train_subword_drafter(corpus_of(TEXT, TEXT), settings, CPU, lambda done, _: steps.append(done))
    assert steps == list(range(1, 61))
    assert trained.bits_per_byte < 1.0  # one sentence again and again
    save_subword_drafter(tmp_path / "drafter", trained.model, trained.tokenizer)
    assert is_subword_drafter(tmp_path / "drafter") and not is_subword_drafter(tmp_path)
    drafter = load_subword_drafter(tmp_path / "drafter", CPU)
    drafter.append(TEXT + b"the cat sat on", 1)
    stream = drafter.guesses([Draws(Sampler(0))])
    assert bytes(guess.byte for _ in range(8) for guess in next(stream) if guess) == b" the mat"


def test_too_little_data_is_a_sentence(settings: SubwordTraining) -> None:
    with pytest.raises(UserError, match="fewer than a window of 33: set a shorter context_length"):
        train_subword_drafter(corpus_of(b"a"), settings, CPU, lambda *_: None)


class TestDamage:
    @pytest.fixture
    def folder(self, trained: SubwordMamba, tokenizer: SubwordTokenizer, tmp_path):
        save_subword_drafter(tmp_path / "drafter", trained, tokenizer)
        return tmp_path / "drafter"

    def test_other_files_do_not_belong_together(self, folder) -> None:
        SubwordTokenizer.trained([TEXT], 280).save(folder / "tokenizer.json")
        with pytest.raises(UserError, match="do not belong together"):
            load_subword_drafter(folder, CPU)

    @pytest.mark.parametrize("name", ["drafter.json", "tokenizer.json", "model.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"{}", b"[1"])
    def test_damaged_files_are_one_sentence(self, folder, name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match="drafter"):
            load_subword_drafter(folder, CPU)

    @pytest.mark.parametrize(
        ("part", "change"),
        [
            (None, {"normalizer": {"type": "Lowercase"}}),
            ("pre_tokenizer", {"pattern": {"Regex": "(a+)+b"}}),
            ("model", {"dropout": 0.5}),
        ],
        ids=["normalizer", "slow-pattern", "random-merges"],
    )
    def test_a_tokenizer_that_does_more_than_merge_is_refused(self, folder, part, change: dict) -> None:
        described = json.loads((folder / "tokenizer.json").read_text())
        (described if part is None else described[part]).update(change)
        (folder / "tokenizer.json").write_text(json.dumps(described))
        with pytest.raises(UserError, match="is no tokenizer of ours: it does more than merge bytes"):
            load_subword_drafter(folder, CPU)

    @pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
    def test_a_pipe_holds_nobody_up(self, folder, name: str) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match="is no regular file"):
            load_subword_drafter(folder, CPU)

    def test_weights_of_another_dtype_are_refused(self, folder) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file({name: tensor.half() for name, tensor in weights.items()}, folder / "model.safetensors")
        with pytest.raises(UserError, match="its weights are not in fp32"):
            load_subword_drafter(folder, CPU)

    def test_absurd_shapes_are_refused_before_anything_is_allocated(self, folder) -> None:
        described = json.loads((folder / "drafter.json").read_text())
        for change in ({"d_model": 10**6}, {"n_layer": 10**4}, {"d_model": "x"}, {"n_layer": None}):
            (folder / "drafter.json").write_text(json.dumps({**described, **change}))
            with pytest.raises(UserError):
                load_subword_drafter(folder, CPU)

    def test_weights_of_another_shape_are_refused(self, folder) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["backbone.embedding.weight"] = torch.zeros(3, 16)
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(UserError, match="is damaged, or no drafter of ours"):
            load_subword_drafter(folder, CPU)
