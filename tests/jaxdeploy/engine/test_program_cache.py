"""Programs on disk: a second start compiles nothing, and nothing that changes a program is overlooked."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from support.tiny_engine import run_all, tiny_engine, tokens_of

from jaxdeploy import runtime
from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine import program_cache
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.program_cache import ProgramCache
from jaxdeploy.engine.request import Request
from jaxdeploy.engine.step import Program


@contextmanager
def jax_cache(folder: Path) -> Iterator[Path]:
    """Make a folder JAX's cache for a while."""
    before = jax.config.jax_compilation_cache_dir
    runtime.set_compile_cache(str(folder))
    reset_cache()  # JAX looks at the setting once
    yield folder
    jax.config.update("jax_compilation_cache_dir", before)
    reset_cache()


@pytest.fixture
def cache_folder(tmp_path):
    """JAX's cache folder for the length of a test: an empty one."""
    with jax_cache(tmp_path):
        yield tmp_path


def small_engine() -> Engine:
    """One bucket for prompts, one for answers, and a sampler of each kind."""
    return tiny_engine(max_batch_size=1, max_prefill_token_num=16)


class FirstStart(NamedTuple):
    """What an engine said that found nothing compiled, how many programs it needed, and where they are kept."""

    answers: tuple[list[int], list[int]]
    wanted: int
    folder: Path


@pytest.fixture(scope="module")
def kept_start(tmp_path_factory) -> FirstStart:
    with jax_cache(tmp_path_factory.mktemp("first_start")) as folder:
        engine = small_engine()
        answers = answer(engine, "a"), answer(engine, "b", temperature=1.0, random_seed=3)
        return FirstStart(answers, len(engine.executor.programs.wanted.names()), folder)


@pytest.fixture
def first_start(kept_start, tmp_path) -> Iterator[FirstStart]:
    """With a copy of what it left, which is JAX's cache folder for the length of a test."""
    with jax_cache(shutil.copytree(kept_start.folder, tmp_path / "copy")) as folder:
        yield kept_start._replace(folder=folder)


def programs_in(folder: Path) -> list[Path]:
    return list((folder / "programs").glob("*.program"))


def answer(engine: Engine, name: str, **options) -> list[int]:
    engine.submit(Request(name, [3, 1, 4, 1, 5], GenerationConfig(max_new_tokens=6, ignore_eos=True, **options)))
    return tokens_of(run_all(engine), name)


def double(name: str = "double", size: int = 3) -> Program:
    x = jax.ShapeDtypeStruct((size,), jnp.float32)
    return Program(name, lambda x, y: (x * 2, {"sum": x + y}), (x, x), donated=(0,), results=(0, {"sum": 0}))


def test_a_second_start_loads_every_program_and_says_the_same(first_start):
    assert len(programs_in(first_start.folder)) == first_start.wanted

    second = small_engine()
    assert second.executor.start_seconds["trace steps"] < second.executor.start_seconds["load steps"]
    assert (answer(second, "a"), answer(second, "b", temperature=1.0, random_seed=3)) == first_start.answers
    assert second.executor.compile_misses == 0
    assert len(programs_in(first_start.folder)) == first_start.wanted, "nothing was compiled again"


def test_a_program_of_jaxs_own_cache_is_not_kept_on_a_cpu(cache_folder):
    program, cache = double(size=7), ProgramCache(cache_folder / "programs")
    cache.compile(program, program.lower())
    (file,) = cache.folder.iterdir()
    file.unlink()
    jax.clear_caches()
    again = cache.compile(program, program.lower())
    assert again(jnp.arange(7.0), jnp.ones(7))[0].tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert list(cache.folder.iterdir()) == [], "it came from JAX's cache"


def test_a_start_with_jaxs_cache_only_leaves_programs_that_run(first_start):
    """As after an update that changed the packages' text but no program."""
    for file in (first_start.folder / "programs").iterdir():
        file.unlink()
    jax.clear_caches()
    assert [answer(small_engine(), "a") for _ in range(2)] == [first_start.answers[0]] * 2
    assert programs_in(first_start.folder) == [], "all came from JAX's cache"


def test_a_loaded_program_gives_back_the_same_trees(tmp_path):
    cache, program = ProgramCache(tmp_path), double()
    assert cache.load(program) is None
    cache.store(program, program.lower().compile())
    loaded = ProgramCache(tmp_path).load(program)
    assert loaded is not None
    x = jnp.arange(3.0)
    doubled, rest = loaded(x, jnp.ones(3))
    assert doubled.tolist() == [0, 2, 4]
    assert rest["sum"].tolist() == [1, 2, 3]
    assert x.is_deleted(), "what is donated stays donated"


def test_what_changes_a_program_changes_its_key(tmp_path, monkeypatch):
    cache, program = ProgramCache(tmp_path), double()
    cache.store(program, program.lower().compile())
    assert cache.load(double()) is not None
    for other in (double(name="triple"), double(size=4), replace(program, donated=())):
        assert cache.load(other) is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert cache.load(double()) is None
    monkeypatch.undo()
    monkeypatch.setattr(program_cache, "_source_digest", lambda: "edited")
    assert cache.load(double()) is None


def test_a_damaged_file_is_compiled_again(tmp_path, caplog):
    cache, program = ProgramCache(tmp_path), double()
    cache.store(program, program.lower().compile())
    (file,) = tmp_path.glob("*.program")
    file.write_bytes(file.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        assert cache.load(program) is None
    assert "compiling double again" in caplog.text


def test_a_folder_that_takes_no_files_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache, program = ProgramCache(tmp_path / "file"), double()
    with caplog.at_level(logging.WARNING):
        cache.store(program, program.lower().compile())
    assert "can't write" in caplog.text


def test_results_that_are_not_as_announced_are_refused(tmp_path):
    program = replace(double(), results=(0, 0))
    with pytest.raises(AssertionError, match="double returns"):
        ProgramCache(tmp_path).store(program, program.lower().compile())


def test_a_number_is_found_out_once(tmp_path):
    cache = ProgramCache(tmp_path)
    assert cache.number([double()], lambda: 7) == 7
    assert cache.number([double()], lambda: 8) == 7
    assert cache.number([double(size=5)], lambda: 8) == 8
    (tmp_path / next(tmp_path.glob("*.json")).name).write_text("{")
    assert ProgramCache(None).number([double()], lambda: 9) == 9
