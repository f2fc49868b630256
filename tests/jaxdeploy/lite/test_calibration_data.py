"""Where calibration text comes from, and how it is cut."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support.tiny_engine import AsciiTokenizer

from jaxdeploy.errors import ConfigError
from jaxdeploy.lite.calibration_data import cut_samples, load_documents
from jaxdeploy.text.chat_template import ChatTemplate

TURNS = ChatTemplate("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}", name="turns")


def cut(documents, **changes):
    options = {"samples": 3, "length": 8, "held_out": 2, "seed": 0, "origin": "here", **changes}
    return cut_samples(documents, AsciiTokenizer(), **options)


def test_windows_do_not_overlap_and_are_of_one_length():
    text = "".join(chr(33 + n % 90) for n in range(80))
    samples = cut([text])
    assert samples.calibration.shape == (3, 8)
    assert samples.held_out.shape == (2, 8)
    starts = [text.index("".join(map(chr, row))) for row in (*samples.calibration, *samples.held_out)]
    assert len(set(starts)) == 5
    assert all(start % 8 == 0 for start in starts)


def test_the_seed_decides():
    text = "".join(chr(33 + n * n % 90) for n in range(400))
    np.testing.assert_array_equal(cut([text]).calibration, cut([text]).calibration)
    assert (cut([text]).calibration != cut([text], seed=1).calibration).any()


def test_short_texts_give_what_they_have_and_hold_out_one():
    samples = cut(["x" * 30], samples=100, held_out=8)
    assert (len(samples.calibration), len(samples.held_out)) == (3, 1)
    assert len(cut(["x" * 14]).held_out) == 1
    with pytest.raises(ConfigError, match=r"7 tokens, fewer than one sample of 8.*--calib-seqlen"):
        cut(["x" * 5])


def test_chat_format_on_request():
    def text(documents, template):
        rows = cut(documents, template=template, samples=1, length=60).calibration
        return bytes(rows.ravel().astype(np.uint8)).decode()

    turns = [{"role": "user", "content": "aa"}, {"role": "assistant", "content": "b"}]
    assert "[user]aa[assistant]b[user]aa" in text([turns] * 20, TURNS)
    assert "aa\n\nb\n\naa" in text([turns] * 20, None)
    assert "[user]hello[user]hello" in text(["hello"] * 20, TURNS)
    assert "hello\n\nhello" in text(["hello"] * 20, None)


def test_files_and_folders(tmp_path: Path):
    (tmp_path / "a.txt").write_text("né", encoding="utf-8")
    rows = ['"plain"', json.dumps({"text": "t"}), "", json.dumps({"messages": [{"role": "user", "content": "m"}]})]
    (tmp_path / "b.jsonl").write_text("\n".join(rows))
    (tmp_path / "ignored.csv").write_text("no")
    assert load_documents(str(tmp_path / "a.txt")) == ["né"]
    assert load_documents(str(tmp_path)) == ["né", "plain", "t", [{"role": "user", "content": "m"}]]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", '{"text": "x"}\n{oops', "line 2: not a JSON value per line"),
        ("a.jsonl", '{"prompt": "x"}', "line 1: expected a string, or an object with text"),
        ("a.txt", "", "holds no text; pass --calib-dataset a .txt"),
        ("a.txt", b"n\xe9", "must be UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str | bytes, reason: str):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=reason) as error:
        load_documents(str(tmp_path / name))
    assert name in str(error.value)


def test_missing_names_say_what_to_pass(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"'no/such' is no file or folder here.*ptb.*'self'"):
        load_documents("no/such")
    with pytest.raises(ConfigError, match=r"no \.txt, \.jsonl"):
        load_documents(str(tmp_path))


def module(monkeypatch, name: str, **content) -> None:
    made = ModuleType(name)
    made.__dict__.update(content)
    made.__spec__ = type("Spec", (), {"name": name})()  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, name, made)


def test_a_named_dataset_that_cant_be_reached_is_one_clear_line(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nlong trace")

    module(monkeypatch, "datasets", load_dataset=load_dataset)
    with pytest.raises(ConfigError, match=r"'ptb' can't be reached \(Couldn't reach the Hub\); pass --calib-dataset"):
        load_documents("ptb")


def test_a_named_dataset_is_read_by_its_text_column(monkeypatch):
    asked = []

    def load_dataset(path, config, *, split, data_files):
        asked.append((path, config, split, data_files))
        return [{"sentence": "a b"}, {"sentence": "c"}]

    module(monkeypatch, "datasets", load_dataset=load_dataset)
    assert load_documents("ptb") == ["a b", "c"]
    assert asked == [("ptb-text-only/ptb_text_only", "penn_treebank", "train", None)]


def test_without_datasets_a_name_says_so(monkeypatch):
    monkeypatch.setattr("jaxdeploy.lite.calibration_data.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'c4' needs the package datasets.*'self'"):
        load_documents("c4")


def test_parquet(monkeypatch, tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr("jaxdeploy.lite.calibration_data.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs pyarrow"):
        load_documents(str(tmp_path / "a.parquet"))

    class Table:
        column_names = ("id", "content")

        def column(self, key):
            assert key == "content"
            return self

        def to_pylist(self):
            return ["x", None, "y"]

    monkeypatch.setattr("jaxdeploy.lite.calibration_data.find_spec", lambda name: name)
    module(monkeypatch, "pyarrow")
    module(monkeypatch, "pyarrow.parquet", read_table=lambda path: Table())
    assert load_documents(str(tmp_path / "a.parquet")) == ["x", "y"]
