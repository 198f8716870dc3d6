"""All JSON that the program writes is valid: other readers have no NaN and no Infinity."""

import ast
import json
from math import inf, nan
from pathlib import Path

import pytest

import mambabyte
from mambabyte.runtime.valid_json import valid_json

KEYS = (
    "reporting/comparison.py",
    "evaluation/resume.py",
    "data/corpus/corpus.py",
    "data/datamodule.py",
    "data/tasks.py",
)


@pytest.mark.parametrize("indent", [None, 2])
def test_what_is_not_finite_is_null_and_says_so(indent: int | None) -> None:
    values = {"loss": nan, "rows": [{"a": inf, "b": -inf}, (1, nan)], "good": 1.5, "none": None}
    assert json.loads(valid_json(values, indent), parse_constant=pytest.fail) == {
        "reason": "loss: not a finite number",
        "loss": None,
        "rows": [{"reason": "a and b: not a finite number", "a": None, "b": None}, [1, None]],
        "good": 1.5,
        "none": None,
    }


def test_a_better_reason_stays() -> None:
    assert json.loads(valid_json({"a": nan, "reason": "no words"})) == {"a": None, "reason": "no words"}


def test_finite_values_are_written_as_ever() -> None:
    values = {"z": [1, 0.1, "é \udcff", True], "a": {}}
    assert valid_json(values) == json.dumps(values)
    assert valid_json({"a": "é"}, indent=1, ensure_ascii=False) == '{\n "a": "é"\n}'


def test_there_is_no_other_road() -> None:
    package = Path(mambabyte.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("dump", "dumps")
        if isinstance(node.value, ast.Name) and node.value.id == "json"
    }
    assert found <= {"runtime/valid_json.py", *KEYS}, "only keys, which nobody reads, are made another way"
