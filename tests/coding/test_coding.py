"""Compression: lossless, of the size that the model's probabilities promise, and never a wrong file."""

import io
import math
import os
import struct
import subprocess
import sys
import zlib
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mambabyte.coding import compress_file, container, decode, decompress_file, encode, prove
from mambabyte.coding.predictions import predictions
from mambabyte.data import ByteCorpus
from mambabyte.errors import UserError
from mambabyte.evaluation import Protocol, evaluate
from mambabyte.models import ByteLM, MambaByteConfig, TransformerConfig


def small_model(seed: int = 0) -> ByteLM:
    torch.manual_seed(seed)
    model = MambaByteConfig(d_model=16, n_layer=2, d_state=4).build().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    return model


@pytest.fixture(scope="module")
def model() -> ByteLM:
    return small_model()


def random_bytes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


def coded(model: ByteLM, data: np.ndarray, lengths: list[int], **settings) -> bytes:
    stream = io.BytesIO()
    result = encode(model, data, lengths, stream, **settings)
    assert (result.bytes, result.file_bytes) == (len(data), len(stream.getvalue()))
    return stream.getvalue()


def decoded(model: ByteLM, file: bytes) -> np.ndarray:
    return decode(model, io.BytesIO(file), lambda size: np.zeros(size, np.uint8))


def test_where_weights_lie_in_memory_changes_no_bit() -> None:
    """A mapped file puts them anywhere, and a library's product of one row and a matrix rounds by that."""
    torch.manual_seed(0)
    model = TransformerConfig(d_model=96, n_layer=1, n_head=2).build().eval()
    askew = deepcopy(model)
    for parameter in askew.parameters():
        room = torch.empty(parameter.numel() + 32)
        first = (72 - room.data_ptr() % 64) % 64 // 4  # 8 bytes after a multiple of 64
        parameter.data = room[first : first + parameter.numel()].view_as(parameter).copy_(parameter.data)
        assert parameter.data_ptr() % 64 == 8
    data = random_bytes(200)
    file = coded(model, data, [200], window=50)
    assert decoded(askew, file).tolist() == data.tolist()
    assert coded(askew, data, [200], window=50) == file


@pytest.mark.parametrize("window", [None, 1, 7, 64])
@pytest.mark.parametrize("lanes", [1, 3, 64])
@pytest.mark.parametrize("lengths", [[], [0], [1], [2], [100], [1, 40, 0, 7, 33, 1, 20], [3] * 9])
def test_lossless(model: ByteLM, lengths: list[int], lanes: int, window: int | None) -> None:
    data = random_bytes(sum(lengths))
    file = coded(model, data, lengths, lanes=lanes, window=window)
    assert decoded(model, file).tolist() == data.tolist()


@pytest.mark.parametrize(("protocol", "window"), [("stateful", None), ("disjoint", 8)])
def test_the_size_is_that_of_the_protocol(model: ByteLM, protocol: str, window: int | None) -> None:
    model = deepcopy(model)
    with torch.no_grad():
        model.lm_head.weight.div_(5)  # nothing less likely than 2^-24, which the coder would round up
    lengths = [1, 400, 3, 900, 64, 200]
    data = random_bytes(sum(lengths))
    stream = io.BytesIO()
    result = encode(model, data, lengths, stream, lanes=4, window=window)
    corpus = ByteCorpus(data, np.concatenate(([0], np.cumsum(lengths))), list("abcdef"))
    bits = evaluate(model, corpus, Protocol(protocol, 8)).nats / math.log(2)
    # one frame: at most two words of 32 bits to end it, and probabilities in steps of 2^-24
    assert 0 <= 8 * (result.file_bytes - result.overhead) - bits < 64 + 0.01 * len(data)


def test_frames_bound_what_is_held(model: ByteLM, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_bytes(500)
    whole = coded(model, data, [200, 300], lanes=2)
    monkeypatch.setattr(container, "FRAME_BYTES", 100)
    framed = coded(model, data, [200, 300], lanes=2)
    assert decoded(model, framed).tolist() == data.tolist()
    # four more frames, each with its header and at most two words to end the coder
    assert 4 * container.FRAME_OVERHEAD < len(framed) - len(whole) <= 4 * (container.FRAME_OVERHEAD + 8)


def test_each_position_is_asked_about_once(model: ByteLM) -> None:
    lengths, seen = [5, 0, 17, 1, 9], []
    schedule = predictions(model, lengths, 2, 4)
    positions, probabilities = next(schedule)
    with torch.no_grad():
        while True:
            seen += positions.tolist()
            assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-12)
            try:
                positions, probabilities = schedule.send(np.zeros(len(positions), np.uint8))
            except StopIteration:
                break
    assert sorted(seen) == list(range(sum(lengths)))


ELSEWHERE = """
import io, sys
sys.path.insert(0, {here!r})
import numpy as np
from test_coding import decoded, small_model
sys.stdout.buffer.write(decoded(small_model(), sys.stdin.buffer.read()).tobytes())
"""


@pytest.mark.parametrize("threads", ["1", "2", "7"])
def test_another_process_with_other_threads_decodes_it(model: ByteLM, threads: str) -> None:
    data = random_bytes(600)
    file = coded(model, data, [100, 200, 300], lanes=2)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    code = ELSEWHERE.format(here=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code], input=file, capture_output=True, env=environment, timeout=120
    )
    assert done.stdout == data.tobytes(), done.stderr


def test_the_same_bytes_give_the_same_file_whatever_the_caller_set(model: ByteLM) -> None:
    data = random_bytes(300)
    files = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            files.append(coded(model, data, [300]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert files[0] == files[1]


def test_another_model_is_refused(model: ByteLM) -> None:
    file = coded(model, random_bytes(50), [50])
    with pytest.raises(UserError, match="another model"):
        decoded(small_model(seed=1), file)


def test_a_flipped_bit_or_a_cut_is_always_found(model: ByteLM) -> None:
    data = random_bytes(60)
    file = coded(model, data, [60])
    for place in range(len(file)):
        damaged = bytearray(file)
        damaged[place] ^= 1 << (place % 8)
        with pytest.raises(UserError):
            decoded(model, bytes(damaged))
        with pytest.raises(UserError):
            decoded(model, file[:place])
    with pytest.raises(UserError, match="follows its end"):
        decoded(model, file + b"\0")


def test_other_probabilities_are_found_out(model: ByteLM, monkeypatch: pytest.MonkeyPatch) -> None:
    # as if this machine rounded otherwise: the fingerprint is the same, the computation is not
    file = coded(model, random_bytes(500), [500])
    rounded = deepcopy(model)
    with torch.no_grad():
        rounded.lm_head.weight.mul_(1 + 1e-3)
    fingerprint = "mambabyte.coding.coder.weights_fingerprint"
    genuine = container.read_header(io.BytesIO(file)).model.hex()
    monkeypatch.setattr(fingerprint, lambda _: genuine)
    with pytest.raises(UserError, match="compressed with torch"):
        decoded(rounded, file)


def test_a_later_format_is_named(model: ByteLM) -> None:
    file = bytearray(coded(model, random_bytes(5), [5]))
    file[len(container.MAGIC)] = 9
    with pytest.raises(UserError, match="format 9"):
        decoded(model, bytes(file))


def test_an_impossible_header_is_not_believed() -> None:
    body = bytes([container.VERSION]) + bytes(41) + b"\xff" * 30
    file = container.MAGIC + body + struct.pack("<I", zlib.crc32(body))
    with pytest.raises(UserError, match="impossible length"):
        container.read_header(io.BytesIO(file))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lanes": 0}, "0 lanes and 1 threads"),
        ({"threads": 0}, "3 lanes and 0 threads"),
        ({"threads": 60_000}, "3 lanes and 60000 threads"),
        ({"lengths": (2**62, 2**62, 2**62)}, "gives more bytes than it can hold"),
        ({"lengths": (2**40,)}, "gives more bytes than it can hold"),
        ({"lengths": ()}, "something follows its end"),
        ({"lengths": (20, 20)}, "cannot be decompressed here"),
        ({"window": 2**32 - 1}, "cut short|cannot be decompressed here|checksum"),
        ({"arithmetic": ""}, "compressed with , this is"),
    ],
)
def test_a_header_with_a_right_checksum_is_not_believed_either(
    model: ByteLM, change: dict, sentence: str
) -> None:
    data = random_bytes(50)
    file = coded(model, data, [50], lanes=3, window=8)
    stream = io.BytesIO(file)
    header = replace(container.read_header(stream), **change)
    if header.arithmetic == "":
        header = replace(header, lengths=(49, 1))
    with pytest.raises(UserError, match=sentence):
        decoded(model, header.to_bytes() + stream.read())


@pytest.mark.parametrize("words", [0, 1, 9])
def test_a_claim_of_more_text_than_the_payload_holds_is_found_at_once(model: ByteLM, words: int) -> None:
    frame = io.BytesIO()
    container.write_frame(frame, np.arange(7, 7 + words, dtype=np.uint32) * 2**27, 0)
    genuine = container.read_header(io.BytesIO(coded(model, random_bytes(5), [5])))
    header = replace(genuine, lengths=(5 << 20,))
    done = []
    file = io.BytesIO(header.to_bytes() + 5 * frame.getvalue())
    with pytest.raises(UserError, match="is damaged, or another processor"):
        decode(model, file, lambda size: np.zeros(size, np.uint8), lambda *counts: done.append(counts))
    assert len(done) < 1000


@pytest.mark.parametrize("certainty", [1e4, 20.0, 5.0])
def test_text_that_costs_next_to_nothing_is_not_taken_for_a_claim(certainty: float) -> None:
    sure = small_model()
    with torch.no_grad():
        sure.backbone.norm_f.weight.zero_()
        sure.backbone.norm_f.bias.fill_(1 / 16)
        sure.lm_head.weight.zero_()
        sure.lm_head.weight[65] = certainty
    data = np.full(64 * 400, 65, np.uint8)
    file = coded(sure, data, [400] * 64)
    assert np.array_equal(decoded(sure, file), data)
    if certainty == 1e4:  # the first byte of each segment costs 8 bits, and the others nothing
        assert len(file) < 400


def test_a_header_of_bytes_that_are_no_text_is_read(model: ByteLM) -> None:
    file = coded(model, random_bytes(5), [5])
    head = container.read_header(io.BytesIO(file)).to_bytes()
    body = head[len(container.MAGIC) : -4].replace(b"torch ", b"\xff\xfe\x1b[2J")
    forged = container.MAGIC + body + struct.pack("<I", zlib.crc32(body)) + file[len(head) :]
    assert len(decoded(model, forged)) == 5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_without_probabilities_writes_nothing(model: ByteLM, value: float, tmp_path: Path) -> None:
    broken = deepcopy(model)
    with torch.no_grad():
        broken.lm_head.weight[3, 0] = value
    (tmp_path / "file").write_bytes(b"some bytes")
    with pytest.raises(UserError, match="no probabilities"):
        compress_file(broken, tmp_path / "file", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_growing_state_needs_windows(model: ByteLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model), "recurrent", False)
    data = random_bytes(50)
    with pytest.raises(UserError, match="windows"):
        coded(model, data, [50])
    assert decoded(model, coded(model, data, [50], window=16)).tolist() == data.tolist()


@pytest.mark.parametrize("content", [b"", b"x", b"\xff\xfe\x00 no text" * 30, "čeština 🙂".encode() * 20])
def test_files_of_any_bytes_come_back(model: ByteLM, content: bytes, tmp_path: Path) -> None:
    source, small, back = (tmp_path / name for name in ("source", "small", "back"))
    source.write_bytes(content)
    result = compress_file(model, source, small, lanes=3)
    assert small.stat().st_size == result.file_bytes
    assert decompress_file(model, small, back) == len(content)
    assert back.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "small", "source"]


def test_what_is_read_is_compressed_whatever_size_the_system_states(model: ByteLM, tmp_path: Path) -> None:
    source = Path("/proc/self/cmdline")  # its size is stated as 0
    if not source.exists():
        pytest.skip("there is no /proc here")
    content = source.read_bytes()
    assert compress_file(model, source, tmp_path / "small").bytes == len(content) > 0
    decompress_file(model, tmp_path / "small", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


@pytest.mark.parametrize("size", [0, 10, 3000])
def test_a_file_that_changes_meanwhile_is_an_error(model: ByteLM, size: int, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(2000))

    def change(done: int, total: int) -> None:
        os.truncate(source, size)

    with pytest.raises(UserError, match="changed while it was compressed"):
        compress_file(model, source, tmp_path / "out", progress=change)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_of_two_that_write_one_file_the_later_is_told(model: ByteLM, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"some bytes")

    def meanwhile(done: int, total: int) -> None:
        if done == 1:
            compress_file(model, tmp_path / "file", tmp_path / "out")

    with pytest.raises(UserError, match=r"another process wrote '.*out' meanwhile.*choose another out="):
        compress_file(model, tmp_path / "file", tmp_path / "out", progress=meanwhile)
    decompress_file(model, tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"some bytes"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "file", "out"]


def test_a_damaged_file_leaves_nothing_behind(model: ByteLM, tmp_path: Path) -> None:
    source, small = tmp_path / "source", tmp_path / "small"
    source.write_bytes(b"to be or not to be")
    compress_file(model, source, small)
    small.write_bytes(small.read_bytes()[:-1])
    with pytest.raises(UserError, match="cut short"):
        decompress_file(model, small, tmp_path / "back")
    with pytest.raises(UserError, match="not a file that"):
        decompress_file(model, source, tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "source"]


def test_files_that_cannot_be_read_or_written_are_reported(model: ByteLM, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with pytest.raises(UserError, match="there is no file"):
        compress_file(model, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="already exists"):
        compress_file(model, tmp_path / "file", tmp_path / "file")
    with pytest.raises(UserError, match="cannot write"):
        compress_file(model, tmp_path / "file", tmp_path / "no" / "folder")
    for settings in ({"lanes": 0}, {"threads": 0}, {"lanes": 70_000}, {"threads": 60_000}):
        with pytest.raises(UserError, match=r"must be from 1 to|must be 1 or more"):
            compress_file(model, tmp_path / "file", tmp_path / "out", **settings)
    assert (tmp_path / "file").read_bytes() == b"abc"


def test_the_proof_is_a_file_of_the_computed_size(model: ByteLM) -> None:
    model = deepcopy(model)
    with torch.no_grad():
        model.lm_head.weight.div_(5)  # nothing less likely than 2^-24, which the coder would round up
    lengths = [900, 700, 1, 1400]
    corpus = ByteCorpus(random_bytes(sum(lengths)), np.concatenate(([0], np.cumsum(lengths))), list("abcd"))
    documents = [corpus.document(i) for i in range(4)]
    for protocol, window in (("stateful", None), ("disjoint", 32)):
        computed = evaluate(model, corpus, Protocol(protocol, 32)).bits_per_byte
        proof = prove(model, documents, computed, window)
        payload = 8 * (proof.file_bytes - proof.overhead) / proof.bytes
        assert payload == pytest.approx(computed, rel=1e-3)  # the promise of `--prove`
        assert proof.relative_difference == pytest.approx(proof.bits_per_byte / computed - 1)


def test_a_proof_that_fails_is_no_proof(model: ByteLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mambabyte.coding.proof.decode", lambda *_: np.zeros(20, np.uint8))
    with pytest.raises(UserError, match="the proof failed"):
        prove(model, [random_bytes(20)], 8.0, None)
