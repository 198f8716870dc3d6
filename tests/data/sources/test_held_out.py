from __future__ import annotations

import itertools
import json

import pyarrow
import pyarrow.parquet
import pytest

from mambabyte.data import HeldOutSource, prepare
from mambabyte.errors import UserError


@pytest.fixture
def folder(tmp_path):
    texts = [f"document {number % 150} é" for number in range(200)]  # 50 of them twice
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet", row_group_size=30)
    return tmp_path


def contents(source, split):
    return [document.data for document in source.documents(split)]


def test_every_document_is_in_one_split_and_copies_are_in_the_same(folder):
    source = HeldOutSource(path=str(folder), validation_fraction=0.2)
    train, validation = contents(source, "train"), contents(source, "validation")
    assert len(train) + len(validation) == 200
    assert not set(train) & set(validation)
    assert 15 < len(set(validation)) < 50  # 30 of 150 expected, standard deviation 4.9


def streamed(source, split):
    for unit in source.units(split):
        for data, offsets in unit.batches():
            yield from (data[begin:end].tobytes() for begin, end in itertools.pairwise(offsets))


@pytest.mark.parametrize("fraction", [0, 0.2, 1])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_streaming_sees_what_is_prepared(fraction, split, folder):
    source = HeldOutSource(path=str(folder), validation_fraction=fraction)
    assert list(streamed(source, split)) == contents(source, split)


def test_units_have_different_identities(folder):
    source, other = (HeldOutSource(path=str(folder), validation_fraction=f) for f in (0.1, 0.2))
    units = [*source.units("train"), *source.units("validation"), *other.units("train")]
    assert len({json.dumps(unit.identity) for unit in units}) == len(units) == 3 * 7


def test_skips_documents_of_its_split(folder):
    source = HeldOutSource(path=str(folder), validation_fraction=0.2)
    whole = list(source.documents("validation"))
    assert list(source.documents_after("validation", 5)) == whole[5:]


def test_prepared_with_its_names(folder, tmp_path):
    source = HeldOutSource(path=str(folder), validation_fraction=0.2)
    corpus = prepare(source, "validation", tmp_path / "prepared")
    assert corpus.num_documents == len(contents(source, "validation"))
    assert all(name.startswith("train:") for name in corpus.names)


def test_identity_sees_the_fraction(folder):
    one, other = (HeldOutSource(path=str(folder), validation_fraction=f).identity() for f in (0.1, 0.2))
    assert one != other
    assert one["source"] == "HeldOutSource"


def test_wrong_settings(folder):
    with pytest.raises(UserError, match="splits train and validation"):
        contents(HeldOutSource(path=str(folder)), "test")
    with pytest.raises(UserError, match=r"data.validation_fraction"):
        HeldOutSource(path=str(folder), validation_fraction=2)
