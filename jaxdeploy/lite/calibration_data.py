"""Text to calibrate on: files, folders and named datasets, cut into samples of a fixed number of tokens."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from jaxdeploy.errors import ConfigError
from jaxdeploy.lite.recipe import SELF
from jaxdeploy.text.chat_template import ChatTemplate
from jaxdeploy.text.tokenizer import Tokenizer

DEFAULT_NAME = "wikitext2"
"""Tried when no dataset is named; ``SELF`` if it can't be reached."""

_SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
_TEXT_KEYS = ("text", "content", "sentence")
_WAY_OUT = (
    "pass --calib-dataset a .txt, .jsonl or .parquet file, a folder of them, or 'self' for text that the model "
    "writes itself"
)


@dataclass(frozen=True, slots=True)
class HubDataset:
    """Where ``datasets.load_dataset`` finds a dataset."""

    path: str
    config: str | None = None
    split: str = "train"
    data_files: str | None = None


NAMED = {
    "wikitext2": HubDataset("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "ptb": HubDataset("ptb-text-only/ptb_text_only", "penn_treebank"),
    "c4": HubDataset("allenai/c4", data_files="en/c4-train.00000-of-01024.json.gz"),
    "pileval": HubDataset("mit-han-lab/pile-val-backup", split="validation"),
}

Document = str | list[dict[str, Any]]
"""A text, or the OpenAI messages of a conversation."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Token ids of a model's vocabulary.

    Attributes:
        calibration: [S, T].
        held_out: [E, T], of the same text, for the perplexity before and after; E may be 0.
        origin: what they were made of, for the report.
    """

    calibration: Int32[np.ndarray, "S T"]
    held_out: Int32[np.ndarray, "E T"]
    origin: str


def load_documents(dataset: str) -> list[Document]:
    """The documents of a local file or folder, or of a named dataset.

    Raises:
        ConfigError: nothing there, nothing in it, a format that needs a package, or a name that can't be reached; says what
            to pass instead.
    """
    path = Path(dataset).expanduser()
    if path.exists():
        documents = list(_from_path(path))
    elif dataset in NAMED:
        documents = _from_hub(dataset)
    else:
        raise ConfigError(
            f"--calib-dataset {dataset!r} is no file or folder here and no known name ({', '.join(NAMED)}, {SELF}); {_WAY_OUT}"
        )
    documents = [document for document in documents if document]
    if not documents:
        raise ConfigError(f"--calib-dataset {dataset!r} holds no text; {_WAY_OUT}")
    return documents


def cut_samples(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    *,
    samples: int,
    length: int,
    held_out: int,
    seed: int,
    origin: str,
    template: ChatTemplate | None = None,
) -> Samples:
    """Windows of the documents' tokens, chosen at random, none overlapping another.

    Args:
        samples: S; fewer if the text has fewer windows.
        length: T.
        held_out: E; only windows that are left over, but at least one where there are two or more.
        template: puts conversations, and texts as a user's turn, into the model's chat format; None leaves texts as they are.

    Raises:
        ConfigError: not even one window of text.
    """
    wanted = (samples + held_out) * length
    random = np.random.default_rng(seed)
    ids: list[int] = []
    for index in random.permutation(len(documents)):
        ids += tokenizer.encode(_text(documents[index], template), add_special=False)
        if len(ids) >= wanted:
            break
    count = len(ids) // length
    if count < 1:
        raise ConfigError(
            f"{origin} has {len(ids)} tokens, fewer than one sample of {length}; lower --calib-seqlen or give more text"
        )
    windows = np.array(ids[: count * length], np.int32).reshape(count, length)[random.permutation(count)]
    kept = min(held_out, max(count - samples, 1)) if count > 1 else 0
    used = min(samples, count - kept)
    return Samples(windows[:used], windows[used : used + kept], origin)


def _text(document: Document, template: ChatTemplate | None) -> str:
    if template is not None:
        messages = [{"role": "user", "content": document}] if isinstance(document, str) else document
        return template.render(messages, add_generation_prompt=False)
    if isinstance(document, str):
        return document + "\n\n"
    return "\n\n".join(str(message.get("content") or "") for message in document) + "\n\n"


def _from_path(path: Path) -> Iterator[Document]:
    if path.is_file():
        yield from _from_file(path)
        return
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        yield from _from_saved_dataset(path)
        return
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise ConfigError(f"--calib-dataset {path}: no {', '.join(_SUFFIXES)} file in this folder; {_WAY_OUT}")
    for file in files:
        yield from _from_file(file)


def _from_file(path: Path) -> Iterator[Document]:
    readers: dict[str, Callable[[Path], Iterator[Document]]] = {
        ".jsonl": _from_json_lines,
        ".json": _from_json_lines,
        ".parquet": _from_parquet,
    }
    try:
        yield from readers.get(path.suffix.lower(), _from_text)(path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"--calib-dataset {path} must be UTF-8 text: {error}") from error


def _from_text(path: Path) -> Iterator[Document]:
    yield path.read_text(encoding="utf-8")


def _from_json_lines(path: Path) -> Iterator[Document]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConfigError(
                    f"--calib-dataset {path}, line {number}: not a JSON value per line: {error}"
                ) from error
            yield _document(row, f"{path}, line {number}")


def _document(row: Any, where: str) -> Document:
    if isinstance(row, str):
        return row
    if isinstance(row, dict):
        messages = row.get("messages")
        if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
            return messages
        for key in _TEXT_KEYS:
            if isinstance(row.get(key), str):
                return row[key]
    raise ConfigError(
        f"--calib-dataset {where}: expected a string, or an object with {', '.join(_TEXT_KEYS)} or messages; found {row!r:.80}"
    )


def _from_parquet(path: Path) -> Iterator[Document]:
    if find_spec("pyarrow") is None:
        raise ConfigError(
            f"--calib-dataset {path}: reading parquet needs pyarrow; pip install pyarrow, or pass a .jsonl file"
        )
    table = import_module("pyarrow.parquet").read_table(path)
    key = next((key for key in ("messages", *_TEXT_KEYS) if key in table.column_names), None)
    if key is None:
        raise ConfigError(
            f"--calib-dataset {path}: no column {', '.join(_TEXT_KEYS)} or messages among {', '.join(table.column_names)}"
        )
    for value in table.column(key).to_pylist():
        if value:
            yield value


def _from_saved_dataset(path: Path) -> Iterator[Document]:
    if find_spec("datasets") is None:
        raise ConfigError(f"--calib-dataset {path}: a saved dataset needs the package datasets; pip install datasets")
    loaded = import_module("datasets").load_from_disk(str(path))
    split = loaded[next(iter(loaded))] if hasattr(loaded, "keys") else loaded
    for number, row in enumerate(split, 1):
        yield _document(row, f"{path}, row {number}")


def _from_hub(name: str) -> list[Document]:
    if find_spec("datasets") is None:
        raise ConfigError(f"--calib-dataset {name!r} needs the package datasets, which is not installed; {_WAY_OUT}")
    where = NAMED[name]
    try:
        rows = import_module("datasets").load_dataset(
            where.path, where.config, split=where.split, data_files=where.data_files
        )
        return [_document(row, name) for row in rows]
    except ConfigError:
        raise
    except Exception as error:  # network, hub, script and cache errors have no common class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--calib-dataset {name!r} can't be reached ({reason:.120}); {_WAY_OUT}") from error
