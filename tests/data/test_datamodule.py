from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import torch

from mambabyte.data import ByteDataModule, DataSettings, HuggingFaceSource
from mambabyte.data.windows import workers
from mambabyte.data.windows.policies import POLICIES
from mambabyte.errors import UserError

CONTEXT = 16
GLOBAL = 8


@pytest.fixture
def make(memory_source, make_documents, tmp_path):
    documents = make_documents([50, 3, 200, 17, 90, 31])

    def make(world_size=1, rank=0, step=0, max_steps=5, restored=None, source=None, device="cpu", **options):
        batches = {"context_length": CONTEXT, "micro_batch_size": 2, "global_batch_size": GLOBAL, "seed": 0}
        batches = {key: options.pop(key, value) for key, value in batches.items()}
        settings = {"windows": "random_per_document", "streaming": False, "workers": 0, "folder": tmp_path}
        settings = DataSettings(**{"source": {}, "validation_bytes": None, **settings, **options})
        module = ByteDataModule(settings, **batches, source=source or memory_source(documents))
        strategy = SimpleNamespace(root_device=torch.device(device))
        ranks = {"world_size": world_size, "global_rank": rank}
        module.trainer = SimpleNamespace(global_step=step, max_steps=max_steps, strategy=strategy, **ranks)
        if restored is not None:
            module.load_state_dict(restored)
        return module

    return make


def rows(batch):
    return [bytes(row.tolist()) for row in batch["bytes"]]


def by_step(make, steps, **options):
    """The windows of each optimizer step over all ranks, sorted."""
    world_size, micro = options.get("world_size", 1), options.get("micro_batch_size", 2)
    per_step = GLOBAL // (world_size * micro)
    windows = [[] for _ in range(steps)]
    for rank in range(world_size):
        for number, batch in enumerate(make(rank=rank, max_steps=steps, **options).train_dataloader()):
            windows[number // per_step] += rows(batch)
    return [sorted(step) for step in windows]


def test_batch_has_its_shapes_and_types(make):
    batch = next(iter(make().train_dataloader()))
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items()} == {
        "bytes": ((2, CONTEXT), torch.uint8),
        "targets": ((2, CONTEXT), torch.int16),
        "document_start": ((2, CONTEXT), torch.bool),
    }
    scored = batch["targets"][:, :-1] >= 0
    assert torch.equal(batch["targets"][:, :-1][scored], batch["bytes"][:, 1:].long()[scored])


@pytest.mark.parametrize("windows", ["random_per_document", "contiguous", "packed"])
@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 8), (1, 1), (2, 2), (4, 1)])
def test_same_windows_whatever_ranks_and_micro_batches(windows, world_size, micro_batch_size, make):
    assert by_step(
        make, 6, windows=windows, world_size=world_size, micro_batch_size=micro_batch_size
    ) == by_step(make, 6, windows=windows)


def test_same_batches_whatever_workers(make):
    alone = [rows(batch) for batch in make().train_dataloader()]
    assert [rows(batch) for batch in make(workers=2).train_dataloader()] == alone


def test_starts_at_the_trainers_step(make):
    whole = [rows(batch) for batch in make().train_dataloader()]
    assert len(whole) == 5 * GLOBAL // 2
    for step in (1, 3, 5):
        assert [rows(batch) for batch in make(step=step).train_dataloader()] == whole[step * GLOBAL // 2 :]


def test_loader_reads_the_step_when_iterated(make):
    module = make()
    loader = module.train_dataloader()
    whole = [rows(batch) for batch in loader]
    module.trainer.global_step = 2
    assert [rows(batch) for batch in loader] == whole[2 * GLOBAL // 2 :]


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_without_a_trainer(streaming, make):
    def module():
        alone = make(streaming=streaming)
        alone.trainer = None
        return alone

    with pytest.raises(RuntimeError, match=r"train_batches\(\)"):
        module().train_dataloader()
    for rank in (0, 1):
        theirs = make(streaming=streaming, rank=rank, world_size=2).train_dataloader()
        ours = module().train_batches(max_steps=5, rank=rank, world_size=2)
        assert [rows(batch) for batch in ours] == [rows(batch) for batch in theirs]
    endless = [rows(batch) for batch in islice(module().train_batches(), 100)]
    assert len(endless) == 100
    resumed = module()
    for batch in islice(resumed.train_batches(), 3 * GLOBAL // 2):
        if streaming:
            resumed.trained(batch["position"])
    assert [rows(batch) for batch in resumed.train_batches(3, 5)] == endless[12:20]
    if streaming:
        with pytest.raises(UserError, match="no stream position"):
            module().train_batches(step=3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("streaming", [False, True])
def test_batches_for_a_gpu_are_in_pinned_memory(streaming, device, make, monkeypatch):
    loaders, original = [], workers.DataLoader

    def loader(*arguments, pin_memory, **options):
        loaders.append(pin_memory)
        return original(*arguments, **options)  # which could not pin here

    monkeypatch.setattr(workers, "DataLoader", loader)
    module = make(streaming=streaming, device=device)
    next(iter(module.train_dataloader()))
    next(module.train_batches())
    assert loaders == [device == "cuda", False]


def test_length_is_that_of_the_whole_run_or_none(make):
    assert len(make(step=3).train_dataloader()) == 5 * GLOBAL // 2
    endless = make(max_steps=-1).train_dataloader()
    with pytest.raises(TypeError):
        len(endless)
    assert sum(1 for _ in islice(endless, 100)) == 100


def test_other_seed_gives_other_windows(make):
    assert by_step(make, 3, seed=1) != by_step(make, 3)


def test_global_batch_that_cannot_be_divided(make):
    with pytest.raises(UserError, match="multiple of 6"):
        make(world_size=2, micro_batch_size=3).train_dataloader()


def test_validation_corpus(make):
    assert make().validation_corpus().num_bytes == 391
    assert make(validation_bytes=100).validation_corpus().num_bytes == 100


def test_prepare_data_makes_what_training_opens(make):
    module = make()
    module.prepare_data()
    list(module.train_dataloader())
    assert module.source.reads == 1


def test_restored_with_the_same_settings(make):
    state = make().state_dict()
    assert [rows(batch) for batch in make(restored=state, step=2).train_dataloader()]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_of_an_earlier_version_goes_on_in_its_order(streaming, make):
    def windows(restored=None):
        module = make(restored=restored, streaming=streaming, step=1)
        if streaming and restored is None:
            module.trained({"worker": 0, "epoch": 0, "unit": 0, "window": 0, "taken": 4})
        batches = [rows(batch) for batch in module.train_dataloader()]
        return batches, json.loads(json.dumps(module.state_dict()))

    new, state = windows()
    assert windows(state)[0] == new
    del state["shuffle"]
    old, state = windows(state)
    assert old != new
    assert windows(state)[0] == old


@pytest.mark.parametrize("shuffle", [0, 3, "2", None])
def test_an_order_of_a_later_version_is_refused(shuffle, make):
    with pytest.raises(UserError, match="order of windows"):
        make(restored={**make().state_dict(), "shuffle": shuffle})


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"windows": "packed"}, "data.windows"),
        ({"context_length": 8}, "context_length"),
        ({"global_batch_size": 16}, "windows in a global batch"),
    ],
)
def test_restored_with_other_settings_is_refused(change, name, make):
    with pytest.raises(UserError, match=f"\\({name}\\)"):
        make(restored=make().state_dict(), **change).train_dataloader()


def test_restored_with_other_data_is_refused(make, memory_source):
    with pytest.raises(UserError, match="the training data"):
        make(restored=make().state_dict(), source=memory_source([bytes(100)])).train_dataloader()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("windows", POLICIES)
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_streaming_resumes_after_the_last_trained_batch(windows, workers, make):
    def streamed(**options):
        return make(
            streaming=True, windows=windows, workers=workers, block_windows=5, max_steps=-1, **options
        )

    whole = [rows(batch) for batch in islice(streamed().train_dataloader(), 40)]
    module, done = streamed(), 0
    for step in (1, 3, 4):  # with three workers, the first one is never next
        for batch in islice(module.train_dataloader(), step * GLOBAL // 2 - done):
            module.trained(batch["position"])
        done = step * GLOBAL // 2
        state = json.loads(json.dumps(module.state_dict()))
        module = streamed(restored=state, step=step)
    assert [rows(batch) for batch in islice(module.train_dataloader(), 24)] == whole[done:]


@pytest.mark.parametrize("shards", [1, 4, 23])
@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 2), (3, 0), (4, 0), (8, 0), (8, 2)])
def test_streaming_serves_each_window_of_an_epoch_to_one_worker_of_one_rank(
    shards, world_size, workers, make, tmp_path
):
    """Files in PG19's layout, fewer or more than the readers, of documents that all differ."""
    folder = tmp_path / "books"
    folder.mkdir()
    texts = [f"{number:06} " * 3 for number in range(23 * 4)]
    for shard in range(shards):
        table = pyarrow.table({"text": texts[shard::shards]})
        pyarrow.parquet.write_table(table, folder / f"train-{shard:05}.parquet", row_group_size=3)
    epochs = [Counter(), Counter()]
    for rank in range(world_size):
        module = make(
            world_size=world_size,
            rank=rank,
            source=HuggingFaceSource(path=str(folder)),
            streaming=True,
            windows="contiguous",
            workers=workers,
            max_steps=-1,
            context_length=CONTEXT,
            micro_batch_size=1,
            global_batch_size=world_size,
        )
        finished = set()  # the workers that are past both epochs
        for batch in module.train_dataloader():
            position = batch["position"]
            if position["epoch"] < 2:
                epochs[position["epoch"]].update(rows(batch))
            else:
                finished.add(position["worker"])
            if len(finished) == max(workers, 1):
                break
    windows = Counter(
        (text[begin : begin + CONTEXT]).encode().ljust(CONTEXT, b"\0")
        for text in texts
        for begin in range(0, len(text) - 1, CONTEXT)
    )
    assert epochs == [windows, windows]


def test_streaming_state_holds_the_position_of_every_rank(make):
    module = make(streaming=True, workers=2)
    place = {"epoch": 2, "unit": 1, "window": 3, "taken": 4}
    module.trained({"worker": 0, **place})
    start = dict.fromkeys(place, 0)
    mine = {"next_worker": 1, "places": [place, start]}
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert module.state_dict()["positions"] == [mine]
    finally:
        torch.distributed.destroy_process_group()
    other = {"next_worker": 0, "places": [start, place]}
    state = {**module.state_dict(), "positions": [mine, other]}
    second = make(streaming=True, workers=2, restored=state, world_size=2, rank=1)
    second.train_dataloader()
    assert second.state_dict()["positions"] == [other]


def test_streaming_prepares_nothing_but_validation(make, tmp_path):
    module = make(streaming=True)
    module.prepare_data()
    next(iter(module.train_dataloader()))
    assert not list(tmp_path.iterdir())
    assert module.validation_corpus().num_bytes == 391


def test_streaming_state_must_fit(make):
    state = make(streaming=True).state_dict()
    make(streaming=True, restored=state, workers=1).train_dataloader()  # like none, this makes one reader
    with pytest.raises(UserError, match="to 1 processes and cannot go on with 2"):
        make(streaming=True, restored=state, world_size=2).train_dataloader()
    with pytest.raises(UserError, match=r"set data\.workers=1 again"):
        make(streaming=True, restored=state, workers=2).train_dataloader()
    with pytest.raises(UserError, match=r"\(data.block_windows\)"):
        make(streaming=True, restored=state, block_windows=2).train_dataloader()
    with pytest.raises(UserError, match="no stream position"):
        make(streaming=True, step=3).train_dataloader()
    with pytest.raises(UserError, match=r"data.streaming"):
        make(restored=state).train_dataloader()


def test_streaming_needs_what_can_be_streamed(make):
    class Local:
        def documents(self, split): ...
        def identity(self): ...

    with pytest.raises(UserError, match="data=hf"):
        make(streaming=True, source=Local())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_fails_raises_its_own_sentence(workers, make, memory_source):
    loader = make(streaming=True, source=memory_source([b"x"]), workers=workers).train_dataloader()
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert str(caught.value).startswith("the stream has no document")
    with pytest.raises(UserError, match="holds no rows"):
        list(make(streaming=True, source=memory_source([])).train_dataloader())


def test_a_revision_that_moved_is_named(make, memory_source, make_documents):
    class Versioned(memory_source):
        def __init__(self, revision, contents):
            super().__init__(contents)
            self.revision = revision

        def identity(self):
            return {"name": "owner/set", "revision": self.revision}

    contents = make_documents([40, 40])
    state = make(streaming=True, source=Versioned("a" * 40, contents)).state_dict()
    with pytest.raises(
        UserError, match=f"owner/set has changed .* to stay on the old commit.*data.revision={'a' * 40}"
    ):
        make(streaming=True, source=Versioned("b" * 40, contents[:1]), restored=state).train_dataloader()
    # another commit of the same shards is accepted
    make(streaming=True, source=Versioned("b" * 40, contents), restored=state).train_dataloader()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("streaming", [True, False])
def test_workers_survive_a_signal_to_all_processes(number, streaming, make):
    others = multiprocessing.active_children()
    loader = iter(make(streaming=streaming, workers=2, max_steps=50).train_dataloader())
    batches = [rows(batch) for batch in islice(loader, 2)]  # one from each worker, so both are running
    workers = [str(child.pid) for child in multiprocessing.active_children() if child not in others]
    assert len(workers) == 2
    subprocess.run(["kill", f"-{int(number)}", *workers], check=True)
    batches += [rows(batch) for batch in islice(loader, 30)]
    whole = make(streaming=streaming, workers=2, max_steps=50).train_dataloader()
    assert batches == [rows(batch) for batch in islice(whole, 32)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("context_length", 0),
        ("context_length", "1024"),
        ("micro_batch_size", 2.5),
        ("global_batch_size", None),
        ("windows", "all"),
        ("seed", "x"),
        ("workers", -1),
        ("workers", True),
        ("folder", None),
        ("streaming", "yes"),
        ("validation_bytes", 0),
        ("block_windows", 0),
    ],
)
def test_ill_typed_settings(field, value, make):
    with pytest.raises(UserError, match="must be"):
        make(**{field: value})


def test_more_workers_than_the_machine_can_start_are_refused(make, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    make(workers=8)
    with pytest.raises(UserError, match=r"data\.workers=9 are too many .* 2 CPUs: set 8 or fewer"):
        make(workers=9)
