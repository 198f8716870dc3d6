"""Faults of the hub while a shard is read."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from mambabyte.data import HuggingFaceSource
from mambabyte.data.sources.parquet import HubShard, row_groups
from mambabyte.data.sources.retries import retrying
from mambabyte.errors import UserError
from tests.hub.server import COMMIT, reset, stall, status

NAME = "data/train-00001-of-00003.parquet"


@pytest.fixture
def naps(monkeypatch):
    """The waits between attempts, recorded instead of slept."""
    naps: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", naps.append)
    return naps


@pytest.fixture
def shard(hub):
    url = f"{hub.endpoint}/datasets/{hub.name}/resolve/{COMMIT}/{NAME}"
    return HubShard(NAME, url, len(hub.files[NAME]), retries=3)


def test_ranges_are_unchanged(hub, shard, naps):
    whole = hub.files[NAME]
    assert bytes(shard.read(0, len(whole))) == whole
    assert bytes(shard.read(10, 2000)) == whole[10:2000]
    assert hub.shard_requests()[-1].endswith("bytes=10-1999")
    texts = [text.tobytes() for group in row_groups(shard, "text") for text in group.documents()]
    assert [text[:8] for text in texts] == [b"Book %d" % number for number in range(510, 518)]
    assert naps == []


@pytest.mark.parametrize(
    ("faults", "waits", "reasons"),
    [
        ([status(500), status(503)], [1, 2], ["HTTP 500", "HTTP 503"]),
        ([status(429, Retry_After="7"), status(502)], [7, 2], ["HTTP 429", "HTTP 502"]),
        ([reset], [1], [""]),
        ([reset, status(500), reset], [1, 2, 1], ["", "HTTP 500", ""]),  # bytes that arrive reset the count
    ],
)
def test_temporary_faults_are_retried_with_one_line_each(faults, waits, reasons, hub, shard, naps, capsys):
    hub.faults += faults
    assert bytes(shard.read(0, shard.size)) == hub.files[NAME]
    assert naps == waits
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(waits)
    for line, wait in zip(lines, waits, strict=True):
        assert line.startswith(f"mambabyte: {NAME}: ")
        assert f"; trying again in {wait} s (" in line and line.endswith(" of 3)")
    assert all(reason in line for reason, line in zip(reasons, lines, strict=True))


def test_a_broken_connection_resumes_where_it_broke(hub, shard, naps):
    hub.faults.append(reset)
    shard.read(0, shard.size)
    half = shard.size // 2
    assert hub.shard_requests()[-1].endswith(f"bytes={half}-{shard.size - 1}")


def test_a_stall_is_retried_too(hub, shard, naps, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.faults.append(stall)
    assert bytes(shard.read(0, 100)) == hub.files[NAME][:100]
    assert naps == [1]
    assert "timed out" in capsys.readouterr().err


def test_retry_after_may_be_a_date(hub, shard, naps):
    hub.faults.append(status(429, Retry_After=formatdate(time.time() + 30, usegmt=True)))
    shard.read(0, 10)
    assert 25 < naps[0] <= 30


def test_waits_grow_to_a_minute_and_end(hub, shard, naps):
    hub.faults += [status(500)] * 9
    with pytest.raises(UserError) as caught:
        HubShard(NAME, shard.url, shard.size, retries=8).read(0, 10)
    assert naps == [1, 2, 4, 8, 16, 32, 60, 60]
    assert str(caught.value) == (
        f"gave up on {NAME} after 9 tries: HTTP 500 Internal Server Error; repeat the command when the "
        "network and the hub are reachable again: a run resumes from its last checkpoint"
    )


def test_a_hub_that_cannot_be_reached(hub, shard, naps):
    hub.stop()
    with pytest.raises(UserError, match=r"gave up on data/.* after 4 tries: .*refused"):
        shard.read(0, 10)


def test_a_first_contact_without_network_ends_within_half_a_minute(monkeypatch, capsys):
    """As `data=wikipedia` without a name server: each attempt fails after a second or two."""
    clock = [0.0]

    def advance(seconds):
        clock[0] += seconds

    def unresolved(*arguments, **options):
        advance(1.5)
        raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.setattr("tenacity.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("tenacity.nap.time.sleep", advance)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unresolved)
    source = HuggingFaceSource(name="wikimedia/wikipedia", revision="0" * 40)
    with pytest.raises(
        UserError, match=r"gave up on the hub's entry of wikimedia/wikipedia after 4 tries: .*Name"
    ):
        source.units("train")
    assert clock[0] < 30
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_first_contact_waits_for_a_server_that_asks_for_it(hub, shard, naps):
    hub.faults += [status(429, Retry_After="90")]
    for attempt in retrying("the list", 3, first_contact=True):
        with attempt:
            shard._receive(bytearray(), 0, 10)
    assert naps == [90]


@pytest.mark.parametrize("number", [401, 403, 404])
def test_permanent_faults_are_not_retried(number, hub, shard, naps):
    hub.faults.append(status(number))
    with pytest.raises(UserError, match=f"HTTP {number} for {NAME}: it is gone, or asks for a login"):
        shard.read(0, 10)
    assert naps == []


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_a_shard_that_is_truncated_or_replaced_is_one_sentence(length, hub, shard, naps):
    hub.files[NAME] = hub.files[NAME][:length]
    with pytest.raises(UserError, match=f"has {length} bytes on the hub, not the {shard.size} "):
        row_groups(shard, "text")
    assert naps == []
