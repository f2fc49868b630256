"""The sweep that all kernels share, with a kernel that only counts: order, budget, resumption, and what is written."""

import argparse
import json
import threading
from types import SimpleNamespace

import jax
import pytest

from pallas_kernels import sweep


class Counter:
    """A tuning whose candidates take their own number of microseconds; a negative one is refused by the compiler."""

    def __init__(self, candidates=(3, 1, 2)):
        self.found = candidates
        self.compiled_shapes: list[int] = []
        self.timed: list[tuple[int, int]] = []
        self.compiling_while_timing: list[int] = []

    def table_path(self):
        raise NotImplementedError

    def shapes(self, options):
        raise NotImplementedError

    def key(self, shape):
        return (shape,)

    def key_of(self, entry):
        return (entry["shape"],)

    def entry(self, shape, config, us):
        return {"shape": shape, "config": config, "us": us}

    def candidates(self, shape):
        return list(self.found)

    def compiled(self, shape, config):
        if config < 0:
            raise RuntimeError("ptxas: too many registers")
        self.compiled_shapes.append(shape)
        return shape, config

    def timer(self, shape):
        def time(program):
            assert program[0] == shape
            self.timed.append(program)
            if program[1] == 99:
                raise ArithmeticError("the result differs")
            return float(program[1])

        return time


def until(count: int):
    """A clock that says yes so many times."""
    left = iter(range(count))
    return lambda: next(left, None) is not None


def always() -> bool:
    return True


def test_the_fastest_candidate_of_each_shape_in_order():
    counter = Counter()
    found = list(sweep.sweep(counter, [5, 6], in_time=always))
    assert [(best.shape, best.config, best.us, best.ran) for best in found] == [(5, 1, 1.0, 3), (6, 1, 1.0, 3)]
    assert counter.timed == [(5, 3), (5, 1), (5, 2), (6, 3), (6, 1), (6, 2)]


def test_what_does_not_compile_or_is_wrong_is_no_candidate(capsys):
    [best] = sweep.sweep(Counter((-1, 99, 4)), [5], in_time=always)
    assert (best.config, best.ran) == (4, 1)
    said = capsys.readouterr().err
    assert "5 -1: RuntimeError: ptxas: too many registers" in said
    assert "5 99: ArithmeticError: the result differs" in said


def test_a_shape_without_any_is_reported_and_the_next_one_tuned():
    assert list(sweep.sweep(Counter((-1,)), [5, 6], in_time=always)) == [None, None]


def test_the_next_shapes_are_compiled_before_the_first_is_timed():
    counter, ready = Counter((1,)), threading.Event()
    compiled = counter.compiled

    def compile_and_tell(shape, config):
        if shape == sweep.AHEAD:
            ready.set()
        return compiled(shape, config)

    counter.compiled = compile_and_tell
    timer = counter.timer

    def wait_for_the_others(shape):
        assert ready.wait(30), "the shape AHEAD of the first is compiled while the first is timed"
        return timer(shape)

    counter.timer = wait_for_the_others
    shapes = list(range(10))
    assert len(list(sweep.sweep(counter, shapes, in_time=always))) == len(shapes)
    assert sorted(set(counter.compiled_shapes)) == shapes


def test_the_time_ends_the_sweep_and_a_shape_that_is_not_through_is_left_out():
    counter = Counter()
    # A question for each shape and each candidate: the eighth is asked before the third candidate of the second shape.
    found = list(sweep.sweep(counter, [5, 6, 7], in_time=until(7)))
    assert [best.shape for best in found] == [5]
    assert counter.timed[-1] == (6, 1)


def test_only_what_the_table_lacks_is_tuned_unless_again():
    counter, table = Counter(), {"entries": [{"shape": 1}]}
    assert sweep.missing(counter, [0, 1, 2], table, again=False) == [0, 2]
    assert sweep.missing(counter, [0, 1, 2], table, again=True) == [0, 1, 2]


def test_a_run_that_stops_keeps_what_it_found_and_the_next_goes_on(tmp_path, capsys):
    path, counter = tmp_path / "tuned" / "gpu.json", Counter()
    assert sweep.run(counter, [0, 1, 2], {}, path, in_time=until(4)) == 3
    assert "2 shapes are left" in capsys.readouterr().out
    table = json.loads(path.read_text())
    assert [entry["shape"] for entry in table["entries"]] == [0]
    assert table["jax"] == jax.__version__
    todo = sweep.missing(counter, [0, 1, 2], table, again=False)
    assert sweep.run(counter, todo, {**table, "copy GB/s": 1}, path, in_time=always) == 0
    table = json.loads(path.read_text())
    assert [entry["shape"] for entry in table["entries"]] == [0, 1, 2]
    assert table["copy GB/s"] == 1
    assert list(path.parent.iterdir()) == [path], "no half-written file is left"


def test_a_tuned_shape_replaces_its_entry():
    old, other, new = ({"shape": s, "us": us} for s, us in ((1, 9.0), (0, 7.0), (1, 5.0)))
    assert sweep.merged(Counter(), {"entries": [old, other]}, [new]) == [other, new]


def test_a_gpu_on_which_nothing_runs_ends_the_run(tmp_path, capsys):
    assert sweep.run(Counter((-1,)), list(range(9)), {}, tmp_path / "t.json", in_time=always) == 1
    assert "3 shapes in a row" in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()


def test_a_candidate_that_never_ends_ends_the_process(monkeypatch, capsys):
    ended = threading.Event()
    monkeypatch.setattr(sweep, "HANG_SECONDS", 0.01)
    monkeypatch.setattr(sweep, "os", SimpleNamespace(_exit=lambda status: ended.set()))
    with sweep._watched("shape and cut"):
        assert ended.wait(30)
    assert "shape and cut did not end" in capsys.readouterr().err


def test_a_sweep_without_a_gpu_says_so(capsys):
    if jax.default_backend() == "gpu":
        pytest.skip("says what happens without a GPU")
    assert sweep.sweep_and_write(Counter(), argparse.Namespace()) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
