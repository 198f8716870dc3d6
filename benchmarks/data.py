"""Throughput of memory-mapped windows, compared with `datasets` and mosaicml-streaming on the same bytes.

    python benchmarks/data.py [--megabytes 200 --document-bytes 400000 --batch-bytes 393216]

Every call delivers the same number of shuffled batches (bytes and targets as tensors), in one process on one
core. Streaming includes opening the files. The peers store the text the way their users do, in rows of
context_length + 1 bytes. Also measured: parquet streamed through ByteDataModule, the share of a training step
of model=small spent waiting for data, and peak memory as the data grows. mosaicml-streaming conflicts with
our pins: `pip install --no-deps mosaicml-streaming`, then install what its import reports missing. Missing
peers are reported and skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from measuring import measure, parser, report

from mambabyte.data import ByteDataModule, DataSettings, Document, HuggingFaceSource
from mambabyte.data.windows.policies import POLICIES

CONTEXTS = (8192, 1024, 256)
ROW_GROUP_ROWS = 100


class RandomText:
    """Documents of random letters, with exponentially distributed lengths."""

    def __init__(self, num_bytes: int, document_bytes: int) -> None:
        self.num_bytes, self.document_bytes = num_bytes, document_bytes

    def identity(self) -> dict[str, Any]:
        return {"source": "RandomText", "bytes": self.num_bytes, "mean": self.document_bytes}

    def documents(self, split: str) -> Iterator[Document]:
        generator, left, number = np.random.default_rng(0), self.num_bytes, 0
        while left > 0:
            length = min(int(generator.exponential(self.document_bytes)) + 2, left)
            text = generator.integers(97, 123, length, dtype=np.uint8)
            yield Document(str(number), text.tobytes())
            left, number = left - length, number + 1


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], repeats=5)
    arguments.add_argument("--megabytes", type=int, default=200, help="size of the text")
    arguments.add_argument("--document-bytes", type=int, default=400_000, help="mean length of a document")
    arguments.add_argument("--batch-bytes", type=int, default=48 * 8192, help="input bytes per batch")
    arguments.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.memory_of is not None:
        print(peak_of_a_loader(options.memory_of * 1_000_000, options))
        return
    torch.set_num_threads(1)
    source = RandomText(options.megabytes * 1_000_000, options.document_bytes)
    with TemporaryDirectory() as folder:
        batches = max(source.num_bytes // options.batch_bytes // 2, 1)
        calls = local_calls(source, options.batch_bytes, batches, Path(folder))
        calls["parquet streamed, context 8192"] = streamed(source, options.batch_bytes, batches, Path(folder))
        timings = measure(calls, options.repeats)
        # Peers run afterwards, not interleaved: mosaicml-streaming's threads keep running between calls.
        timings |= measure(peer_calls(source, options.batch_bytes, batches, Path(folder)), options.repeats)
    rates = {name: batches * options.batch_bytes / timing.median for name, timing in timings.items()}
    peers = [rate for name, rate in rates.items() if name.startswith(("datasets", "mosaicml"))]
    ratios = {
        f"{policy} / fastest peer, context 8192": rates[f"{policy}, context 8192"] / max(peers)
        for policy in POLICIES
    }
    wait = share_of_waiting()
    memory = {
        f"peak_megabytes_at_{size}_megabytes": peak_in_a_process(size, options)
        for size in (options.megabytes // 10, options.megabytes)
    }
    setting = {key: getattr(options, key) for key in ("megabytes", "document_bytes", "batch_bytes")}
    megabytes = {f"{name}, MB/s": round(rate / 1e6, 1) for name, rate in rates.items()}
    if not options.json:
        print("\n".join(f"  {name:46}{rate:10,.1f}" for name, rate in megabytes.items()))
        megabytes = {}
    report(
        "data", timings, ratios, options.json, **setting, **megabytes,
        wait_share_of_a_training_step=round(wait, 5), **memory,
    )  # fmt: skip


def data_module(
    source: Any,
    context_length: int,
    batch_bytes: int,
    folder: Path,
    windows: str = "random_per_document",
    streaming: bool = False,
) -> ByteDataModule:
    settings = DataSettings(
        source={}, windows=windows, streaming=streaming, folder=folder, workers=0, validation_bytes=None
    )
    size = batch_bytes // context_length
    return ByteDataModule(settings, context_length, size, size, source=source)


def local_calls(source: RandomText, batch_bytes: int, batches: int, folder: Path) -> dict[str, Callable]:
    calls: dict[str, Callable[[], object]] = {}
    for context_length in CONTEXTS:
        for policy in POLICIES:
            module = data_module(source, context_length, batch_bytes, folder, windows=policy)
            module.prepare_data()
            calls[f"{policy}, context {context_length}"] = taking(Restarting(module.train_batches), batches)
    return calls


def peer_calls(source: RandomText, batch_bytes: int, batches: int, folder: Path) -> dict[str, Callable]:
    calls: dict[str, Callable[[], object]] = {}
    module = data_module(source, CONTEXTS[0], batch_bytes, folder)
    module.prepare_data()
    rows = module.train_corpus().bytes
    for name, make in (("datasets", datasets_peer), ("mosaicml-streaming", mosaicml_peer)):
        try:
            for context_length in CONTEXTS:
                loader = make(rows, context_length, batch_bytes // context_length, folder)
                calls[f"{name}, context {context_length}"] = taking(loader, batches)
        except ImportError as error:
            print(f"{name} is skipped: {error}", file=sys.stderr)
    return calls


def taking(loader: Any, batches: int) -> Callable[[], None]:
    """A call that takes `batches` batches, restarting the loader when it ends."""

    def take() -> None:
        taken = 0
        while taken < batches:
            for _ in islice(loader, batches - taken):
                taken += 1

    return take


def datasets_peer(text: np.ndarray, context_length: int, batch: int, folder: Path) -> Any:
    """The library's own iteration over a shuffled map-style dataset of rows, as numpy arrays."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()

    rows = text[: len(text) // (context_length + 1) * (context_length + 1)].reshape(-1, context_length + 1)
    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), context_length + 1)
    path = folder / f"rows-{context_length}.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"bytes": values}), path, row_group_size=1000)
    shuffled = Dataset.from_parquet(str(path), cache_dir=str(folder / "datasets")).shuffle(seed=0)

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        for found in shuffled.with_format("numpy").iter(batch, drop_last_batch=True):
            yield inputs_and_targets(np.stack(found["bytes"]))

    return Restarting(batches)


def mosaicml_peer(text: np.ndarray, context_length: int, batch: int, folder: Path) -> Any:
    """MDS shards of raw rows, shuffled by the library and read through torch's DataLoader."""
    stand_in_for_torchvision()
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    out = folder / f"mds-{context_length}"
    with MDSWriter(out=str(out), columns={"bytes": "bytes"}) as writer:
        for start in range(0, len(text) - context_length, context_length + 1):
            writer.write({"bytes": text[start : start + context_length + 1].tobytes()})
    dataset = StreamingDataset(local=str(out), shuffle=True, batch_size=batch)

    def collate(samples: list[dict[str, bytes]]) -> dict[str, torch.Tensor]:
        joined = b"".join(sample["bytes"] for sample in samples)
        return inputs_and_targets(np.frombuffer(joined, np.uint8).reshape(len(samples), -1))

    return DataLoader(dataset, batch_size=batch, collate_fn=collate, drop_last=True)


def stand_in_for_torchvision() -> None:
    """mosaicml-streaming imports torchvision for images, and few of its builds match the installed torch."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    for name in (
        "torchvision",
        "torchvision.datasets",
        "torchvision.transforms",
        "torchvision.transforms.functional",
    ):
        sys.modules[name] = ModuleType(name)
    sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]


def inputs_and_targets(rows: np.ndarray) -> dict[str, torch.Tensor]:
    found = torch.from_numpy(np.require(rows, np.uint8, ["W"]))
    return {"bytes": found[:, :-1], "targets": found[:, 1:].to(torch.int16)}


class Restarting:
    def __init__(self, batches: Callable[[], Iterator[Any]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self._batches()


def streamed(source: RandomText, batch_bytes: int, batches: int, folder: Path) -> Callable[[], object]:
    """The same number of contiguous windows, streamed from local parquet files."""
    texts = [document.data.decode() for document in source.documents("train")]
    parquet = folder / "parquet"
    parquet.mkdir()
    for number, start in enumerate(range(0, len(texts), 4 * ROW_GROUP_ROWS)):
        table = pyarrow.table({"text": texts[start : start + 4 * ROW_GROUP_ROWS]})
        pyarrow.parquet.write_table(
            table, parquet / f"train-{number:05}.parquet", row_group_size=ROW_GROUP_ROWS
        )

    def stream() -> None:
        origin = HuggingFaceSource(path=str(parquet))
        module = data_module(origin, 8192, batch_bytes, folder, windows="contiguous", streaming=True)
        taking(module.train_batches(), batches)()

    return stream


def share_of_waiting(steps: int = 12) -> float:
    """The fraction of training time of model=small on this CPU that is spent in the data loader."""
    from mambabyte.commands.train import TrainSettings

    settings = TrainSettings.compose("model=small")
    model = settings.model.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    waited = worked = 0.0
    with TemporaryDirectory() as folder:
        source = RandomText(5_000_000, 20_000)
        batch_bytes = settings.trainer.micro_batch_size * settings.context_length
        module = data_module(source, settings.context_length, batch_bytes, Path(folder))
        batches = module.train_batches()
        for step in range(steps):
            begin = time.perf_counter()
            batch = next(batches)
            ready = time.perf_counter()
            logits = model(batch["bytes"], document_start=batch["document_start"])
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch["targets"].flatten().long(), ignore_index=-100
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step >= 2:  # the first steps compile the kernel and fill caches
                waited += ready - begin
                worked += time.perf_counter() - ready
    return waited / (waited + worked)


def peak_in_a_process(megabytes: int, options: Any) -> float:
    command = [sys.executable, __file__, "--memory-of", str(megabytes)]
    command += ["--document-bytes", str(options.document_bytes), "--batch-bytes", str(options.batch_bytes)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_of_a_loader(num_bytes: int, options: Any) -> float:
    """Peak anonymous memory in MB while preparing the data and reading half an epoch of windows.

    The mapped pages of the byte file are not counted, since the system can drop them.
    """
    with TemporaryDirectory() as folder:
        source = RandomText(num_bytes, options.document_bytes)
        module = data_module(source, 8192, options.batch_bytes, Path(folder), windows="contiguous")
        module.prepare_data()
        peak = 0.0
        for number, _ in enumerate(islice(module.train_batches(), num_bytes // options.batch_bytes // 2)):
            if number % 16 == 0:
                peak = max(peak, anonymous_megabytes())
        return peak


def anonymous_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    main()
