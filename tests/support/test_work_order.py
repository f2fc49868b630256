"""The order in which workers get files."""

from pathlib import Path

import pytest
from support.work_order import LONGEST, LongestFirst, place_in_order

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("path", LONGEST)
def test_what_is_named_is_there(path):
    assert (REPOSITORY / path).exists()
    assert path.endswith("/") == (REPOSITORY / path).is_dir()


def test_named_files_come_first_and_the_others_stay_in_order():
    others = ["tests/jaxdeploy/engine/test_buckets.py::test_b", "tests/jaxdeploy/engine/test_buckets.py::test_a"]
    named = [f"{path}test_x.py::test_x" if path.endswith("/") else f"{path}::test_x" for path in LONGEST]
    assert sorted([*others, *reversed(named)], key=place_in_order) == [*named, *others]


def test_a_folder_is_one_piece_of_work_and_so_is_a_file():
    scheduler = object.__new__(LongestFirst)
    live = {scheduler._split_scope(f"tests/serve/live/test_{name}.py::test_it[x::y]") for name in "ab"}
    assert live == {"tests/serve/live/"}
    files = [scheduler._split_scope(f"tests/serve/test_{name}.py::test_it[x::y]") for name in "aab"]
    assert files == ["tests/serve/test_a.py", "tests/serve/test_a.py", "tests/serve/test_b.py"]
