"""Range coding of bytes with a model's predictions, by `constriction` (arXiv 2201.01741).

It rounds probabilities to multiples of 2^-24 and never to 0, so that any bytes can be coded.
"""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch

from mambabyte.checkpoints import weights_fingerprint
from mambabyte.coding import container
from mambabyte.coding.container import DamagedFile, Header
from mambabyte.coding.predictions import MAX_LANES, fixed_arithmetic, predictions
from mambabyte.errors import UserError
from mambabyte.models import ByteLM
from mambabyte.ops.backends import backend_for
from mambabyte.runtime.progress import ProgressCallback

_HASH_CHUNK = 1 << 24
_SLACK_WORDS = 2  # more than a frame's words can fall short of the information in its bytes


@dataclass(frozen=True)
class Coded:
    """The size of ``bytes`` bytes in compressed form; ``overhead`` is the part for header and checksums."""

    bytes: int
    file_bytes: int
    overhead: int

    @property
    def bits_per_byte(self) -> float:
        """Of the whole file; infinite if it holds no bytes."""
        return 8 * self.file_bytes / self.bytes if self.bytes else float("inf")


def encode(
    model: ByteLM,
    data: np.ndarray,
    lengths: Sequence[int],
    stream: BinaryIO,
    lanes: int = MAX_LANES,
    window: int | None = None,
    threads: int = 1,
    progress: ProgressCallback | None = None,
) -> Coded:
    """Compress ``data`` (n,) uint8, cut into segments of these lengths, and write it to ``stream``.

    Memory does not grow with the data, which may be a memory map.

    Args:
        lanes: segments coded at once; more are faster and change nothing else.
        window: the model's context is reset after this many bytes; None: only between segments.
        threads: for the model, both here and in :func:`decode`.

    Raises:
        UserError: the model gives no probabilities, or a setting is out of range.
    """
    for name, value, most in (
        ("lanes", lanes, container.MAX_LANES),
        ("threads", threads, container.MAX_THREADS),
    ):
        if not 1 <= value <= most:
            raise UserError(f"{name} must be from 1 to {most}, not {value}")
    digests = container.digest(weights_fingerprint(model)), content_digest(data)
    header = Header(*digests, window, lanes, threads, arithmetic(model), tuple(map(int, lengths)))
    head = header.to_bytes()
    stream.write(head)
    encoder = _Encoder(data, stream)
    _code(model, header, encoder, progress)
    if content_digest(data) != header.content:
        raise UserError("the bytes changed while they were compressed; repeat the command")
    overhead = len(head) + encoder.frames * container.FRAME_OVERHEAD
    return Coded(len(data), len(head) + encoder.written, overhead)


def decode(
    model: ByteLM,
    stream: BinaryIO,
    allocate: Callable[[int], np.ndarray],
    progress: ProgressCallback | None = None,
) -> np.ndarray:
    """Decompress what :func:`encode` wrote into the array (n,) uint8 that ``allocate(n)`` returns.

    Raises:
        UserError: the file was compressed with another model, is damaged or cut short, or this machine, its
            versions or kernels round the model's probabilities differently.
    """
    header = container.read_header(stream)
    if header.model != container.digest(weights_fingerprint(model)):
        other = f"another model (its weights' fingerprint begins with {header.model.hex()})"
        raise UserError(f"this file was compressed with {other}: give the checkpoint it was compressed with")
    data = allocate(sum(header.lengths))
    try:
        _code(model, header, _Decoder(data, stream), progress)
    except _OtherProbabilities:
        here = arithmetic(model)
        if header.arithmetic == here:
            raise DamagedFile(
                f"this file cannot be decompressed here: it was compressed with {here}, as is here, and is "
                "damaged, or another processor's probabilities differ in the last digits"
            ) from None
        raise UserError(
            f"this file cannot be decompressed here: it was compressed with {header.arithmetic}, this is "
            f"{here}, and their probabilities differ in the last digits; decompress it on the "
            "kind of machine and with the versions that compressed it"
        ) from None
    if stream.read(1):
        raise DamagedFile("the file is damaged: something follows its end")
    if content_digest(data) != header.content:
        raise DamagedFile("the file is damaged: what came out does not agree with its checksum")
    return data


def arithmetic(model: ByteLM) -> str:
    """The versions and kernels that determine how a model's probabilities are rounded."""
    device = model.device
    cpu = torch.backends.cpu.get_cpu_capability()
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return f"torch {torch.__version__} {kind} {backend_for(device)}"


def content_digest(data: np.ndarray) -> bytes:
    """The digest of the bytes (n,) uint8 that a header holds."""
    digest = hashlib.sha256()
    for start in range(0, len(data), _HASH_CHUNK):
        digest.update(np.ascontiguousarray(data[start : start + _HASH_CHUNK]).data)
    return container.digest(digest.digest())


def _code(
    model: ByteLM, header: Header, coder: "_Encoder | _Decoder", progress: ProgressCallback | None
) -> None:
    total, done = sum(header.lengths), 0
    with fixed_arithmetic(model, header.threads):
        schedule = predictions(model, header.lengths, header.lanes, header.window)
        request = next(schedule, None)
        while request is not None:
            coder.begin_frame()
            frame_end = done + container.FRAME_BYTES
            while request is not None and done < frame_end:
                symbols = coder(*request)
                done += len(symbols)
                if progress is not None:
                    progress(done, total)
                try:
                    request = schedule.send(symbols)
                except StopIteration:
                    request = None
            coder.end_frame()


@dataclass
class _Encoder:
    """Encodes the bytes at the given positions."""

    data: np.ndarray
    stream: BinaryIO
    written: int = 0
    frames: int = 0

    def begin_frame(self) -> None:
        from constriction import stream

        self._coder = stream.queue.RangeEncoder()
        self._family = stream.model.Categorical(perfect=False)
        self._checksum = 0

    def __call__(self, positions: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        symbols = self.data[positions]
        self._coder.encode(symbols.astype(np.int32), self._family, probabilities)
        self._checksum = zlib.crc32(symbols.data, self._checksum)
        return symbols

    def end_frame(self) -> None:
        self.written += container.write_frame(self.stream, self._coder.get_compressed(), self._checksum)
        self.frames += 1


class _OtherProbabilities(Exception):
    """A frame decodes to other bytes than were encoded."""


@dataclass
class _Decoder:
    """Decodes the bytes at the given positions, and stores them."""

    data: np.ndarray
    stream: BinaryIO

    def begin_frame(self) -> None:
        from constriction import stream

        words, self._expected = container.read_frame(self.stream)
        self._coder = stream.queue.RangeDecoder(words)
        self._family: Any = stream.model.Categorical(perfect=False)
        self._checksum = 0
        self._bits_left = 32.0 * (len(words) + _SLACK_WORDS)

    def __call__(self, positions: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        try:
            symbols = self._coder.decode(self._family, probabilities).astype(np.uint8)
        except (AssertionError, ValueError) as error:  # no byte fits the code word
            raise _OtherProbabilities from error
        # `constriction` reads on past the end of its words. What has been decoded fits no longer into them
        # soon after, however much text the header still claims.
        self._bits_left += float(np.log2(_at_most(probabilities[np.arange(len(symbols)), symbols])).sum())
        if self._bits_left < 0:
            raise _OtherProbabilities
        self.data[positions] = symbols
        self._checksum = zlib.crc32(symbols.data, self._checksum)
        return symbols

    def end_frame(self) -> None:
        if self._checksum != self._expected:
            raise _OtherProbabilities


def _at_most(probabilities: np.ndarray) -> np.ndarray:
    """An upper bound of what the coder makes of these probabilities by rounding them."""
    return np.minimum(probabilities + 2.0**-23, 1.0)
