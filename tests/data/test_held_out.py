from __future__ import annotations

import itertools

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


def test_every_document_is_on_one_side_and_copies_are_on_the_same(folder):
    source = HeldOutSource(path=str(folder), validation_fraction=0.2)
    train, validation = contents(source, "train"), contents(source, "validation")
    assert len(train) + len(validation) == 200
    assert not set(train) & set(validation)
    assert 15 < len(set(validation)) < 50  # 30 of 150 expected, standard deviation 4.9


def test_streaming_sees_what_is_prepared(folder):
    source = HeldOutSource(path=str(folder), validation_fraction=0.2)
    assert [document for document, _ in source.stream("train")] == contents(source, "train")
    for place in (0, 1, 70):
        ((_, cursor),) = itertools.islice(source.stream("train"), place, place + 1)
        assert [document for document, _ in source.stream("train", cursor)] == contents(source, "train")[
            place:
        ]


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
