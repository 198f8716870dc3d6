"""The page, in a browser."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator

import pytest
import torch

from mambabyte.generation import Sampler, generate
from mambabyte.models import ByteLM
from tests.serving.browser import Browser
from tests.serving.conftest import NAME, Served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
HOSTILE = "<img src=x onerror=alert(1)>é\x1b\u202e日"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(str(CHROMIUM), tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Browser]:
    browser.open(served.url)
    browser.wait_for("model !== null")
    yield browser
    served.gate.set()
    browser.wait_for("running === null")
    assert browser.faults == []


def enter(page: Browser, **values: object) -> None:
    for name, value in values.items():
        field = f"document.getElementById('{name}')"
        kind = "checked" if isinstance(value, bool) else "value"
        page.run(f"{field}.{kind} = {json.dumps(value)}")


def press_generate(page: Browser) -> None:
    page.run("document.getElementById('generate').click()")


def test_bytes_appear_with_their_bits_and_what_else_was_expected(
    page: Browser, served: Served, model: ByteLM
) -> None:
    enter(page, prompt=HOSTILE, max_tokens=150, temperature=0.9, top_k=200, top_p=0.99, min_p=0.0001, seed=3)
    press_generate(page)
    page.wait_for("running === null && bytes.length")
    prompt = HOSTILE.encode()
    text = prompt + bytes(generate(model, prompt, 150, Sampler(0.9, 200, 0.99, 3, 0.0001)))
    assert bytes(page.run("bytes")) == text
    assert page.run("document.title") == f"{NAME} · mambabyte"
    assert page.run("document.querySelectorAll('#text img, #detail img').length") == 0
    assert b"".join(bytes(group) for group in page.run("cells.map(c => c.bytes.map(b => b.value))")) == text
    decoded = text.decode(errors="surrogateescape")
    assert page.run("cells.length") == len(decoded)
    kinds = page.run("cells.map(c => c.kind)")
    assert kinds == ["invalid" if "\udc80" <= c <= "\udcff" else "character" for c in decoded]
    assert "invalid" in kinds
    with torch.no_grad():
        nats = -model(text)[0].double().log_softmax(-1)
    bits = page.run("cells.flatMap(c => c.bytes.map(b => b.bits))")
    assert bits[0] is None
    wanted = [(nats[i, byte] / math.log(2)).item() for i, byte in enumerate(text[1:])]
    assert bits[1:] == pytest.approx(wanted, abs=2e-3)  # fp32's rounding, with logits up to about 100
    shown = page.run("cells.map(c => c.element.textContent)")
    assert shown[text.index(b"\x1b") - 1] == "ESC" and "U+202E" in shown
    status = page.run("document.getElementById('status').textContent")
    assert (
        status.startswith(f"150 bytes, {sum(wanted[-150:]) / 150:.2f} bits per byte") and "seed 3" in status
    )


def test_the_text_is_gone_through_by_keys_and_by_pointer(page: Browser) -> None:
    enter(page, prompt="abc", max_tokens=20, temperature=0.8, valid_utf8=True)
    press_generate(page)
    page.wait_for("running === null && bytes.length")
    page.run("document.getElementById('text').focus()")
    for key in ("End", "Home", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"):
        page.press(key)
    assert page.run("document.querySelectorAll('.on').length") == 1
    page.press("Home")
    page.press("ArrowRight")
    detail = "document.getElementById('detail')"
    assert page.run(f"{detail}.textContent").startswith("\u2018b\u2019 62: ")
    assert page.run(f"{detail}.querySelectorAll('tr').length") in (8, 9)  # the byte itself may be below them
    page.run("cells[0].element.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))")
    assert page.run(f"{detail}.textContent") == "\u2018a\u2019 61: not predicted"


def test_stop_frees_the_row_and_go_on_continues_the_same_bytes(
    page: Browser, served: Served, model: ByteLM
) -> None:
    enter(page, prompt="abc", max_tokens=16384, seed=1, echo=False)
    press_generate(page)
    page.wait_for("bytes.length > 3")
    served.wait_for_load(rows=1)
    page.run("document.getElementById('stop').click()")
    served.wait_for_load(rows=0)
    page.wait_for("running === null")
    assert page.run("document.getElementById('status').textContent").startswith("Stopped: ")
    before = bytes(page.run("bytes"))
    enter(page, max_tokens=30, seed=2, temperature=0.8)
    page.run("document.getElementById('more').click()")
    page.wait_for(f"running === null && bytes.length === {len(before) + 30}")
    assert bytes(page.run("bytes")) == before + bytes(generate(model, before, 30, Sampler(0.8, seed=2)))


def test_a_refusal_is_shown(page: Browser) -> None:
    enter(page, prompt="a" * 100_001)
    press_generate(page)
    page.wait_for("document.getElementById('status').className.includes('wrong')")
    assert "at most 100,000 bytes" in page.run("document.getElementById('status').textContent")
    page.faults.clear()  # Chromium logs the 400 itself


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (390, "light"), (1280, "dark")])
def test_it_fits_and_every_control_has_a_label(page: Browser, width: int, scheme: str) -> None:
    page.look(width, 800, scheme)
    enter(page, prompt="word " * 40 + "w" * 200, max_tokens=200)
    press_generate(page)
    page.wait_for("running === null && bytes.length")
    page.run("choose(50)")
    assert page.run("document.documentElement.scrollWidth") <= width
    labelled = "e => e.labels.length && e.labels[0].textContent.trim()"
    assert page.run(f"[...document.querySelectorAll('input, textarea')].every({labelled})")
    assert len(page.screenshot()) > 10_000


def test_a_key_can_be_entered(browser: Browser, serving) -> None:
    with serving(key="sesame") as server:
        browser.open(server.url)
        browser.wait_for("!document.getElementById('key-label').hidden")
        browser.faults.clear()  # Chromium logs the 401 itself
        enter(browser, key="sesame", max_tokens=5)
        press_generate(browser)
        browser.wait_for("running === null && bytes.length > 5")
        assert browser.faults == []
