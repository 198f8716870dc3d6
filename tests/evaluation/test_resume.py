"""What must not change a figure: batch size, ranks, and an interruption. In float64, to 1e-9."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from mambabyte.data import ByteCorpus
from mambabyte.errors import UserError
from mambabyte.evaluation import Protocol, SavedProgress, evaluate
from mambabyte.evaluation.bits_per_byte import documents_per_rank
from mambabyte.models import ByteLM

PROTOCOLS = ("disjoint", "sliding", "stateful")
HERE = Path(__file__).parent

RANK = """
import json, sys
sys.path.insert(0, {here!r})
import torch
from conftest import small_corpus, small_model
from mambabyte.evaluation import Protocol, evaluate
torch.set_num_threads(1)
store = torch.distributed.FileStore({store!r}, {ranks})
torch.distributed.init_process_group("gloo", store=store, rank=int(sys.argv[1]), world_size={ranks})
for protocol in {protocols!r}:
    result = evaluate(
        small_model(torch.float64), small_corpus(), Protocol(protocol, 8, batch_size=3), all_ranks=True
    )
    print(json.dumps(result.to_dict()))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def exact(model: ByteLM) -> ByteLM:
    return deepcopy(model).double()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_batch_size_changes_nothing(exact: ByteLM, corpus: ByteCorpus, protocol: str) -> None:
    figures = [
        evaluate(exact, corpus, Protocol(protocol, 8, batch_size=batch_size)).nats
        for batch_size in (1, 2, 7, 1000)
    ]
    assert figures == pytest.approx([figures[0]] * 4, rel=1e-9)


def test_the_number_of_ranks_changes_nothing(exact: ByteLM, corpus: ByteCorpus, tmp_path: Path) -> None:
    ranks = 3
    code = RANK.format(here=str(HERE), store=str(tmp_path / "store"), ranks=ranks, protocols=PROTOCOLS)
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks
    alone = {
        protocol: evaluate(exact, corpus, Protocol(protocol, 8, batch_size=3)).to_dict()
        for protocol in PROTOCOLS
    }
    for output in outputs:
        shared = [json.loads(line) for line in output.splitlines()]
        assert [result["protocol"]["name"] for result in shared] == list(PROTOCOLS)
        for result in shared:
            expected = alone[result["protocol"]["name"]]
            assert result["nats"] == pytest.approx(expected["nats"], rel=1e-9)
            for key in ("bytes", "documents", "data_fingerprint", "weights_fingerprint"):
                assert result[key] == expected[key], key
            bits = [[document["bits_per_byte"] for document in r["per_document"]] for r in (result, expected)]
            assert bits[0] == pytest.approx(bits[1], rel=1e-9)


def test_ranks_get_every_document_once_and_like_shares() -> None:
    lengths = [5, 100, 1, 40, 40, 20, 7]
    shares = documents_per_rank(lengths, 3)
    assert sorted(index for share in shares for index in share) == list(range(len(lengths)))
    assert sorted(sum(lengths[i] for i in share) for share in shares) == [53, 60, 100]
    assert documents_per_rank([3], 2) == [[0], []]


class Killed(Exception):
    pass


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_interrupted_evaluation_goes_on(
    exact: ByteLM, corpus: ByteCorpus, protocol: str, tmp_path: Path
) -> None:
    saved = SavedProgress(tmp_path, every=0)
    how = Protocol(protocol, 8, batch_size=3)

    def killed(done: int, total: int) -> None:
        if done > total // 2:
            raise Killed

    with pytest.raises(Killed):
        evaluate(exact, corpus, how, saved_progress=saved, progress=killed)
    (note,) = tmp_path.iterdir()
    # another measurement of the same model does not take it for its own
    other = evaluate(exact, corpus, Protocol(protocol, 16, batch_size=3), saved_progress=saved)
    assert note.exists()
    seen: list[int] = []
    resumed = evaluate(exact, corpus, how, saved_progress=saved, progress=lambda done, _: seen.append(done))
    whole = evaluate(exact, corpus, how)
    assert seen[0] > corpus.num_bytes // 4
    assert seen[-1] == corpus.num_bytes
    assert resumed.nats == pytest.approx(whole.nats, rel=1e-9)
    assert other.nats != pytest.approx(whole.nats, rel=1e-9) or protocol == "stateful"
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_note_starts_the_evaluation_again(
    exact: ByteLM, corpus: ByteCorpus, tmp_path: Path
) -> None:
    saved, how = SavedProgress(tmp_path, every=0), Protocol("stateful", 8, batch_size=3)

    def killed(done: int, total: int) -> None:
        if done > total // 2:
            raise Killed

    with pytest.raises(Killed):
        evaluate(exact, corpus, how, saved_progress=saved, progress=killed)
    (note,) = tmp_path.iterdir()
    note.write_bytes(note.read_bytes()[:100])
    resumed = evaluate(exact, corpus, how, saved_progress=saved)
    assert resumed.nats == pytest.approx(evaluate(exact, corpus, how).nats, rel=1e-9)


def test_a_place_that_cannot_be_written_is_reported(
    exact: ByteLM, corpus: ByteCorpus, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="out="):
        evaluate(exact, corpus, Protocol(), saved_progress=SavedProgress(tmp_path / "file", every=0))


def test_float64_is_computed_in_float64(exact: ByteLM, model: ByteLM, corpus: ByteCorpus) -> None:
    nats = [evaluate(m, corpus, Protocol("disjoint", 8)).nats for m in (exact, model)]
    assert nats[0] == pytest.approx(nats[1], rel=1e-5)
    assert nats[0] != pytest.approx(nats[1], rel=1e-12)  # or the tolerance above would mean nothing
    assert exact(torch.tensor([[1]])).dtype == torch.float64
