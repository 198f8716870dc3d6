"""The faster precision: the device's word, a product timed both ways, and the answer that is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from mambabyte.runtime import precision
from mambabyte.runtime.precision import (
    bf16_speedup,
    fastest_precision,
    multiplies_bf16,
    slowness_of_bf16,
)

CPU = torch.device("cpu")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """timed(fp32=[...], bf16=[...]) is what products take from then on, the last again and again; returns the
    precisions timed. Nothing is kept yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def install(fp32: list[float], bf16: list[float]) -> list[str]:
        left, order = {"fp32": [fp32[0], *fp32], "bf16": [bf16[0], *bf16]}, []

        def product(name: str) -> float:
            order.append(name)
            seconds = left[name]
            return seconds.pop(0) if len(seconds) > 1 else seconds[0]

        monkeypatch.setattr(precision, "_products", lambda device: product)
        bf16_speedup.cache_clear()
        return order

    yield install
    bf16_speedup.cache_clear()


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """processor("avx2", ...) is what this one has from then on."""

    def install(*instructions: str) -> None:
        known = {**dict.fromkeys(instructions, True), "amx_fp16": False, "cpu_name": "one"}
        monkeypatch.setattr(precision, "_cpu_capabilities", lambda: known)

    return install


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "mambabyte").glob("precision-*.json"))


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16", "bf16"])
def test_bf16_where_the_processor_multiplies_it_and_is_faster(instruction, timed, processor) -> None:
    timed(fp32=[3.0], bf16=[1.0])
    processor("neon", "avx2", instruction)
    fastest = fastest_precision(CPU)
    assert (fastest.name, fastest.reason) == ("bf16", "3.0 times as fast as fp32 on this processor")
    assert slowness_of_bf16(CPU) is None


def test_without_instructions_nothing_is_timed_to_choose(timed, processor) -> None:
    order = timed(fp32=[1.0], bf16=[14.0])
    processor("avx2", "avx512_f")
    fastest = fastest_precision(CPU)
    assert (fastest.name, fastest.reason) == ("fp32", "this processor has no bf16 instructions")
    assert not order
    assert slowness_of_bf16(CPU) == "bf16 products take 14 times as long as fp32 ones on this processor"


@pytest.mark.parametrize(
    ("seconds", "slowness"),
    [
        (0.95, None),  # casts would take more than that
        (2.5, "bf16 products take 2.5 times as long as fp32 ones on this processor"),
    ],
)
def test_a_timing_overrules_the_processor(seconds, slowness, timed, processor) -> None:
    timed(fp32=[1.0], bf16=[seconds])
    processor("avx512_bf16")
    fastest = fastest_precision(CPU)
    assert (fastest.name, fastest.reason) == ("fp32", "bf16 is no faster on this processor")
    assert slowness_of_bf16(CPU) == slowness


def test_a_fast_product_does_not_overrule_a_processor_without(timed, processor) -> None:
    timed(fp32=[2.0], bf16=[1.0])
    processor("avx2")
    assert fastest_precision(CPU).name == "fp32"
    assert slowness_of_bf16(CPU) is None


def test_a_busy_moment_changes_nothing(timed, processor) -> None:
    order = timed(fp32=[9.0, 2.0, 9.0, 9.0], bf16=[90.0, 90.0, 1.0, 90.0])
    processor("avx512_bf16")
    assert bf16_speedup(CPU) == 2.0
    assert order[:6] == ["fp32", "bf16"] * 3, "in turns"


def test_slow_products_are_not_repeated_for_long(timed, processor, monkeypatch) -> None:
    monkeypatch.setattr(precision, "_MEASURING_SECONDS", -1.0)
    order = timed(fp32=[1.0], bf16=[40.0])
    assert bf16_speedup(CPU) == pytest.approx(1 / 40)
    assert len(order) == 2 * (1 + precision._LEAST_ROUNDS)


def test_the_answer_is_kept_for_other_processes(timed, processor, tmp_path: Path) -> None:
    timed(fp32=[3.0], bf16=[1.0])
    processor("avx512_bf16")
    assert bf16_speedup(CPU) == 3.0
    order = timed(fp32=[1.0], bf16=[1.0])  # as in another process
    assert bf16_speedup(CPU) == 3.0 and not order
    (path,) = kept(tmp_path)
    assert json.loads(path.read_text()) == {"torch": torch.__version__, "bf16_speedup": 3.0}


def test_another_processor_pytorch_or_limit_is_measured_itself(timed, processor, monkeypatch, tmp_path):
    changes = [
        lambda: processor("avx512_bf16", "amx_bf16"),
        lambda: monkeypatch.setattr(torch, "__version__", "99.0"),
        lambda: monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
    ]
    processor("avx512_bf16")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    for number, change in enumerate([lambda: None, *changes], start=1):
        change()
        timed(fp32=[float(number)], bf16=[1.0])
        assert bf16_speedup(CPU) == number
        assert len(kept(tmp_path)) == number


@pytest.mark.parametrize(
    "damaged",
    [
        *(b"", b"\xff", b"[]", b"3", b"{}", b'{"bf16_speedup": null}', b'{"bf16_speedup": "3"}'),
        *(b'{"bf16_speedup": 0.0}', b'{"bf16_speedup": NaN}', b'{"bf16_speedup": Infinity}', b"[" * 10**5),
    ],
    ids=lambda damaged: damaged[:24].decode("latin-1") or "empty",
)
def test_a_damaged_answer_is_replaced(damaged: bytes, timed, processor, tmp_path: Path) -> None:
    processor("avx512_bf16")
    timed(fp32=[3.0], bf16=[1.0])
    bf16_speedup(CPU)
    (path,) = kept(tmp_path)
    path.write_bytes(damaged)
    timed(fp32=[4.0], bf16=[1.0])
    assert bf16_speedup(CPU) == 4.0
    assert json.loads(path.read_text())["bf16_speedup"] == 4.0


def test_an_answer_that_cannot_be_kept_is_measured_once_in_a_process(timed, processor, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    processor("avx512_bf16")
    timed(fp32=[3.0], bf16=[1.0])
    assert fastest_precision(CPU).name == "bf16"
    monkeypatch.setattr(precision, "_products", lambda device: pytest.fail("it is known"))
    assert bf16_speedup(CPU) == 3.0


def test_it_is_really_measured_and_leaves_the_random_state_and_threads(timed, monkeypatch) -> None:
    products = precision._products
    timed(fp32=[1.0], bf16=[1.0])  # clears what is kept
    monkeypatch.setattr(precision, "_products", products)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    assert 0 < bf16_speedup(CPU) < 1000
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads


def test_an_earlier_pytorch_asks_the_system(monkeypatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(Path, "read_text", lambda path: "model name: one\nflags\t\t: fpu avx512_bf16\n")
    assert multiplies_bf16(CPU)
    monkeypatch.setattr(Path, "read_text", lambda path: "Features\t: fp asimd\n")
    assert not multiplies_bf16(CPU)

    def absent(path):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert not multiplies_bf16(CPU)


@pytest.mark.parametrize("multiplies", [True, False])
def test_a_gpu_is_asked_without_what_it_emulates(multiplies, timed, monkeypatch) -> None:
    asked = []

    def supported(including_emulation=True):
        asked.append(including_emulation)
        return multiplies

    timed(fp32=[9.0], bf16=[1.0])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    fastest = fastest_precision(torch.device("cuda", 0))
    assert asked == [False]
    assert fastest.name == ("bf16" if multiplies else "fp32")
    assert fastest.reason == (
        "9.0 times as fast as fp32 on this GPU" if multiplies else "this GPU has no bf16 instructions"
    )
