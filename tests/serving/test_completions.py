"""OpenAI's own client against the server."""

from __future__ import annotations

import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch

from mambabyte.generation import Sampler, generate
from mambabyte.models import ByteLM
from tests.serving.conftest import NAME, Served

ASCII = {"extra_body": {"valid_utf8": True}}


def expected(model: ByteLM, prompt: bytes, length: int, sampler: Sampler) -> bytes:
    return bytes(generate(model, prompt, length, sampler))


def shown(data: bytes) -> str:
    return data.decode(errors="replace")


def test_a_completion_is_what_generate_writes(served: Served, model: ByteLM) -> None:
    done = served.write("ab", max_tokens=30, temperature=0)
    assert done.object == "text_completion" and done.model == NAME and done.id.startswith("cmpl-")
    assert done.choices[0].text == shown(expected(model, b"ab", 30, Sampler(0)))
    assert done.choices[0].finish_reason == "length" and done.choices[0].logprobs is None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (2, 30, 32)
    assert served.write().usage.completion_tokens == 16  # as with OpenAI


def test_every_setting_of_the_sampler_is_obeyed(served: Served, model: ByteLM) -> None:
    extra = {"top_k": 50, "min_p": 0.001, "repetition_penalty": 1.5, "valid_utf8": True}
    sampler = Sampler(1.5, 50, 0.95, 7, 0.001, 1.5, True)
    text = served.text("é", max_tokens=40, temperature=1.5, top_p=0.95, seed=7, extra_body=extra)
    assert text == expected(model, "é".encode(), 40, sampler).decode()


def test_seeds_decide_and_without_one_texts_differ(served: Served) -> None:
    one, same, other = (served.text(max_tokens=30, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert served.text(max_tokens=30) != served.text(max_tokens=30)


def test_choices_of_several_prompts_in_their_order(served: Served, model: ByteLM) -> None:
    done = served.write(["ab", "xyz"], n=2, max_tokens=20, seed=3)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    wanted = [
        shown(expected(model, prompt, 20, Sampler(1.0, seed=3, sample=sample)))
        for prompt in (b"ab", b"xyz")
        for sample in (0, 1)
    ]
    assert [choice.text for choice in done.choices] == wanted
    assert len(set(wanted)) == 4
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (5, 80)


def test_prompts_of_bytes(served: Served, model: ByteLM) -> None:
    wanted = shown(expected(model, b"\xff\x00a", 20, Sampler(0)))
    assert served.text([255, 0, 97], max_tokens=20, temperature=0) == wanted
    both = served.write([[255, 0, 97], [98]], max_tokens=20, temperature=0).choices
    assert both[0].text == wanted and len(both) == 2
    assert served.text("", max_tokens=9, temperature=0) == shown(expected(model, b"", 9, Sampler(0)))


def test_stop_strings_end_the_text_before_them(served: Served, model: ByteLM) -> None:
    whole = expected(model, b"ab", 60, Sampler(1.0, seed=5, valid_utf8=True)).decode()
    stop = whole[20:23]
    end = whole.index(stop)
    done = served.write(max_tokens=60, seed=5, stop=[stop, "\x00never"], **ASCII)
    assert done.choices[0].text == whole[:end] and done.choices[0].finish_reason == "stop"
    assert done.usage.completion_tokens == len(whole[:end].encode()) + len(stop.encode())
    assert served.text(max_tokens=60, seed=5, stop=stop, **ASCII) == whole[:end]


def test_logprobs_are_the_models(served: Served, model: ByteLM) -> None:
    choice = served.write("ab", max_tokens=12, temperature=0.5, seed=1, logprobs=3, echo=True).choices[0]
    told = choice.logprobs
    written = expected(model, b"ab", 12, Sampler(0.5, seed=1))
    text = b"ab" + written
    names = [chr(byte) if byte < 128 else f"bytes:\\x{byte:02x}" for byte in text]
    assert choice.text == shown(text)
    assert told.tokens == names
    with torch.no_grad():
        table = model(text)[0].double().log_softmax(-1)
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    for i, byte in enumerate(text[1:]):
        # The server's logits come from steps and pieces: fp32's rounding, with logits up to about 100.
        assert told.token_logprobs[i + 1] == pytest.approx(table[i, byte].item(), abs=1e-3)
        likeliest = {chr(b) if b < 128 else f"bytes:\\x{b:02x}" for b in table[i].topk(3).indices.tolist()}
        assert set(told.top_logprobs[i + 1]) == likeliest | {names[i + 1]}
        assert sum(map(math.exp, told.top_logprobs[i + 1].values())) <= 1 + 1e-6
    without = served.write("ab", max_tokens=12, logprobs=0).choices[0].logprobs
    assert len(without.token_logprobs) == 12 and without.top_logprobs == []


def test_offsets_are_those_of_the_characters(served: Served) -> None:
    told = served.write([0xC3, 0xA9, 0xFF, 0x61, 0xE2, 0x82], max_tokens=0, echo=True, logprobs=0)
    assert told.choices[0].text == "é\ufffda\ufffd"
    assert told.choices[0].logprobs.text_offset == [0, 0, 1, 2, 3, 3]
    assert told.choices[0].finish_reason == "length" and told.usage.completion_tokens == 0


def test_a_stream_is_the_same_text_in_whole_characters(served: Served) -> None:
    fields = {"max_tokens": 300, "seed": 4, "n": 2, "extra_body": {"valid_utf8": True}}
    whole = served.write("ab", **fields)
    options = {"include_usage": True}
    chunks = list(served.write("ab", **fields, stream=True, stream_options=options))
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    for choice in whole.choices:
        own = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(c.text for c in own) == choice.text
        assert [c.finish_reason for c in own] == [None] * (len(own) - 1) + ["length"]
    assert any(len(choice.text) < 300 for choice in whole.choices)  # there were characters of several bytes
    assert not any("\ufffd" in c.text for chunk in chunks for c in chunk.choices)
    plain = list(served.write("ab", max_tokens=20, stream=True))
    assert all(chunk.usage is None for chunk in plain)


def test_a_streams_logprobs_are_those_of_its_text(served: Served) -> None:
    fields = {"max_tokens": 60, "seed": 6, "logprobs": 2, "echo": True, "stop": ["a", "\x07"]}
    whole = served.write("xyz", **fields).choices[0]
    own = [c for chunk in served.write("xyz", **fields, stream=True) for c in chunk.choices]
    for part in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [x for c in own for x in getattr(c.logprobs, part)] == getattr(whole.logprobs, part)


@pytest.mark.parametrize("temperature", [0, 1], ids=["greedy", "seeded"])
def test_sixteen_clients_at_once_get_what_each_gets_alone(served: Served, temperature: int) -> None:
    prompts = [f"{i} is {'a longer ' * i}prompt" for i in range(16)]

    def write(i: int) -> str:
        return served.text(prompts[i], max_tokens=80 + i, temperature=temperature, seed=i)

    alone = [write(i) for i in range(16)]
    served.gate.clear()
    with ThreadPoolExecutor(16) as pool:
        together = pool.map(write, range(16))
        served.wait_for_load(rows=16)
        served.gate.set()
        assert list(together) == alone
    assert len(set(alone)) > 1
    served.wait_for_load(rows=0)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": [256]}, "prompt", "0 to 255"),
        ({"prompt": []}, "prompt", "prompt must be"),
        ({"prompt": 3}, "prompt", "prompt must be"),
        ({"max_tokens": -1}, "max_tokens", "at least 0"),
        ({"max_tokens": 10**9}, "max_tokens", "at most 16,384"),
        ({"temperature": -0.5}, "temperature", "at least 0"),
        ({"temperature": "hot"}, "temperature", "a number"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"n": 0}, "n", "at least 1"),
        ({"n": 33}, "n", "32 at most"),
        ({"prompt": ["a"] * 33}, "prompt", "32 at most"),
        ({"n": 2, "best_of": 3}, "best_of", "not supported"),
        ({"stop": ""}, "stop", "stop must be"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"stop": "a" * 257}, "stop", "256 bytes"),
        ({"seed": -1}, "seed", "at least 0"),
        ({"logprobs": 21}, "logprobs", "at most 20"),
        ({"suffix": "end"}, "suffix", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "repetition_penalty"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "repetition_penalty"),
        ({"logit_bias": {"97": 1}}, "logit_bias", "not supported"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
        ({"extra_body": {"top_kk": 3}}, "top_kk", "did you mean top_k?"),
        ({"extra_body": {"sample": 3}}, "sample", "no field"),
        ({"extra_body": {"top_k": 257}}, "top_k", "at most 256"),
        ({"prompt": "a" * 100_001}, "prompt", "100,000 bytes"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_what_is_not_obeyed_is_refused(served: Served, fields: dict, param: str, says: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        served.write(**fields)
    body = refusal.value.body
    assert body["type"] == "invalid_request_error"
    assert says in body["message"] and "\n" not in body["message"]
    assert body["param"] == param


def test_what_changes_nothing_is_allowed(served: Served) -> None:
    plain = served.text(max_tokens=20, seed=1)
    null = {"best_of": None, "stop": None, "logprobs": None, "suffix": None, "user": "me", "top_p": 1}
    zero = {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "best_of": 1}
    assert served.text(max_tokens=20, seed=1, **null) == plain
    assert served.text(max_tokens=20, seed=1, **zero) == plain


def test_the_documented_calls_run(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(compile(code.replace("http://127.0.0.1:8000", served.url), "docs/serving.md", "exec"), names)
    names["client"].close()
    assert names["done"].usage.completion_tokens == 200
    assert len(names["scored"].choices[0].logprobs.tokens) == 10
    assert capsys.readouterr().out


def test_models_are_listed_and_others_are_not_found(served: Served, model: ByteLM) -> None:
    assert [each.id for each in served.client.models.list()] == [NAME]
    told = served.client.models.retrieve(NAME)
    assert told.parameters == model.num_parameters() and told.object == "model"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        served.client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        served.client.completions.create(model="gpt", prompt="a")
    answer = served.http.post("/v1/completions", json={"prompt": "a"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "model"
