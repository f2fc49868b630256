"""Compiled programs kept on disk, so that the next start neither traces nor compiles them.

JAX's own compilation cache knows a program by its HLO, which a start must trace and lower first: seconds for every bucket, and the
longest part of a warm start. Here a program is known by what it is made of: the text of the packages that define it, versions,
device, configuration, and shapes.
"""

import hashlib
import json
import logging
import os
import pickle
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import jax
from jax.experimental.serialize_executable import deserialize_and_load, serialize

import jaxdeploy
import pallas_kernels
from jaxdeploy.engine.step import Program

_log = logging.getLogger(__name__)
_JAX_CACHE_HIT = "/jax/compilation_cache/cache_hits"
_OF_NO_INTEREST = ("cache", "compilation", "log", "dump", "traceback", "profiler")
"""Parts of names of JAX's settings that change no program."""
_thread = threading.local()  # .hits: programs that this thread's compilations took from JAX's own cache


def _count_hit(event: str, **kwargs: str | int) -> None:
    if event == _JAX_CACHE_HIT:
        _thread.hits = _hits() + 1


def _hits() -> int:
    return getattr(_thread, "hits", 0)


jax.monitoring.register_event_listener(_count_hit)


class ProgramCache:
    """A folder of programs. What can't be read is compiled again; what can't be written is left unwritten, with a warning.

    Loading a program runs what the file says: like JAX's own cache, the folder must be writable by nobody but its owner.
    """

    def __init__(self, folder: Path | None):
        """Args:
        folder: None keeps nothing.
        """
        self.folder = folder

    @classmethod
    def beside_jax(cls) -> "ProgramCache":
        """In JAX's own cache folder, if there is one."""
        folder = jax.config.jax_compilation_cache_dir
        return cls(Path(folder) / "programs" if folder else None)

    def load(self, program: Program) -> jax.stages.Compiled | None:
        """The compiled program, if it was stored."""
        path = self._path(_key(program), "program")
        if path is None or not path.exists():
            return None
        try:
            return deserialize_and_load(
                path.read_bytes(),
                jax.tree.structure((program.arguments, {})),
                jax.tree.structure(program.results),
                execution_devices=jax.devices()[:1],
            )
        except Exception as error:  # whatever is wrong with a file that may have been cut short
            _log.warning("compiling %.40s again: %s can't be loaded (%s)", program.name, path, error)
            return None

    def compile(self, program: Program, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        """Compile a program and keep it.

        One for a CPU that JAX's own cache had is not kept: such a program, stored again, lacks parts of its code and fails when it
        runs (seen with jax 0.12.0.1: "Function ... not found"). The next start finds it in JAX's cache once more.
        """
        before = _hits()
        compiled = lowered.compile(compiler_options=program.compiler_options)
        if _hits() == before or jax.devices()[0].platform != "cpu":
            self.store(program, compiled)
        return compiled

    def store(self, program: Program, compiled: jax.stages.Compiled) -> None:
        """Keep a compiled program."""
        path = self._path(_key(program), "program")
        if path is None:
            return
        try:
            content, _, results = serialize(compiled)
        except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError, pickle.PicklingError) as error:
            _log.warning("%.40s is not kept for the next start: %s", program.name, error)
            return
        if results != jax.tree.structure(program.results):
            raise AssertionError(f"{program.name} returns {results}, not {program.results}")
        _write(path, content)

    def number(self, programs: list[Program], compute: Callable[[], int]) -> int:
        """What ``compute`` finds out about programs, or found out before."""
        path = self._path(hashlib.sha256("".join(map(_key, programs)).encode()).hexdigest(), "json")
        if path is not None and path.exists():
            try:
                return int(json.loads(path.read_text()))
            except (OSError, ValueError) as error:
                _log.warning("%s can't be read: %s", path, error)
        found = compute()
        if path is not None:
            _write(path, json.dumps(found).encode())
        return found

    def _path(self, key: str, kind: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.{kind}"


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, also when two processes write the same file."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            temporary = file.name
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        _log.warning("the program cache can't write %s: %s", path, error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _key(program: Program) -> str:
    leaves, structure = jax.tree.flatten(program.arguments)
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in leaves]
    options = sorted(program.compiler_options.items())
    text = repr((_surroundings(), program.name, program.donated, options, str(structure), shapes))
    return hashlib.sha256(text.encode()).hexdigest()


def _surroundings() -> tuple:
    """Whatever else decides what a program is compiled to."""
    device = jax.devices()[0]
    settings = {
        name: value for name, value in jax.config.values.items() if not any(part in name for part in _OF_NO_INTEREST)
    }
    versions = jax.__version__, version("jaxlib"), device.client.platform_version
    return (
        _source_digest(),
        versions,
        device.device_kind,
        len(jax.devices()),
        os.environ.get("XLA_FLAGS", ""),
        sorted(settings.items(), key=lambda item: item[0]),
    )


@cache
def _source_digest() -> str:
    """Of every file of the packages whose code is traced, tuned tables included."""
    digest = hashlib.sha256()
    for package in (jaxdeploy, pallas_kernels):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".json"):
                digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
