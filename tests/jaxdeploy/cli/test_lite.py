"""jaxdeploy lite perplexity, with an evaluation that runs no model."""

import json
import math
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

from jaxdeploy.cli.main import main


@dataclass(frozen=True, slots=True)
class Result:
    perplexity: float
    window_nll: tuple[float, ...]
    window_tokens: tuple[int, ...]
    nll_per_token: float
    standard_error: float
    tokens: int
    seconds: float


@pytest.fixture
def lite(monkeypatch, capsys):
    """Runs ``jaxdeploy lite``: lite(*arguments) -> status, stdout, stderr, calls."""

    def run(*arguments, standard_error=0.01234, tokens=lambda model: (511,) * 8):
        calls = []

        def evaluate_perplexity(model, text, engine_config, *, window, stride, max_tokens, progress):
            calls.append((model, text, engine_config.quant_policy, window, stride, max_tokens))
            progress("load", 1, 2)
            worse = 0.1 if model == "worse" else 0.0
            windows = tuple(2.5 + 0.1 * i + worse * (1 + i % 3) for i in range(8))
            return Result(12.34567, windows, tokens(model), 2.51338, standard_error, 1234567, 4.25)

        module = ModuleType("jaxdeploy.lite.perplexity")
        module.__dict__["evaluate_perplexity"] = evaluate_perplexity
        monkeypatch.setitem(sys.modules, "jaxdeploy.lite.perplexity", module)
        with pytest.raises(SystemExit) as exit_:
            main(["lite", *arguments])
        shown = capsys.readouterr()
        return exit_.value.code, shown.out, shown.err, calls

    return run


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Prose, né texte.", encoding="utf-8")
    return path


def test_a_row_per_model_and_policy(lite, text_file):
    policies = ["--quant-policy", "0", "--quant_policy", "8"]
    status, out, _, calls = lite("perplexity", "a", "folder/b", "--text", str(text_file), *policies)
    assert status == 0
    assert [(model, policy) for model, _, policy, *_ in calls] == [("a", 0), ("a", 8), ("folder/b", 0), ("folder/b", 8)]
    header, *rows = [line.split() for line in out.split("\n\n")[0].splitlines()]
    assert " ".join(header) == "model quant policy perplexity nll per token standard error tokens seconds"
    assert rows[3] == ["folder/b", "8", "12.346", "2.5134", "0.0123", "1,234,567", "4.2"]
    assert len(rows) == 4


def test_defaults_and_options(lite, text_file):
    assert lite("perplexity", "--text", str(text_file))[3] == [(None, "Prose, né texte.", 0, 1024, None, None)]
    options = ["--ctx", "64", "--stride", "32", "--max-tokens", "500"]
    assert lite("perplexity", "m", "--text", str(text_file), *options)[3][0][3:] == (64, 32, 500)


def test_json(lite, text_file):
    out = lite("perplexity", "--json", "--text", str(text_file))[1]
    (row,) = json.loads(out)
    assert (row["model"], row["quant_policy"], row["perplexity"], row["tokens"]) == ("demo", 0, 12.34567, 1234567)


def test_json_of_a_single_window_has_no_nan(lite, text_file):
    out = lite("perplexity", "--json", "--text", str(text_file), standard_error=math.nan)[1]
    (row,) = json.loads(out, parse_constant=pytest.fail)
    assert row["standard_error"] is None


def test_models_are_compared_with_the_first(lite, text_file):
    status, out, _, _ = lite("perplexity", "a", "a", "worse", "--text", str(text_file))
    assert status == 0, "a difference is a finding, not an error"
    head, same, worse = out.split("\n\n")[1].splitlines()
    assert head == "against a with quant policy 0:"
    assert same == "  a with quant policy 0: the same in every window"
    assert worse.startswith("  worse with quant policy 0: differs beyond noise: perplexity 2")
    assert "over 8 windows" in worse
    first, _, third = json.loads(lite("perplexity", "a", "a", "worse", "--json", "--text", str(text_file))[1])
    assert "against_first" not in first
    assert third["against_first"]["differs"] is True
    assert 0.1 < third["against_first"]["low"] < third["against_first"]["change"] < third["against_first"]["high"]


def test_models_with_other_windows_are_not_compared(lite, text_file):
    def tokens(model):
        return (511,) * (8 if model == "a" else 7)

    out = lite("perplexity", "a", "b", "--text", str(text_file), tokens=tokens)[1]
    assert out.splitlines()[-1].endswith("not comparable, the tokenizers cut the text differently")
    few = lite("perplexity", "a", "--quant-policy", "0", "--quant-policy", "8", "--json", "--text", str(text_file))[1]
    assert json.loads(few)[1]["against_first"]["sentence"] == "the same in every window"


def test_a_bad_policy_is_found_before_anything_runs(lite, text_file):
    status, _, err, calls = lite(
        "perplexity", "m", "--text", str(text_file), "--quant-policy", "0", "--quant-policy", "5"
    )
    assert (status, calls) == (2, [])
    assert err == "error: quant_policy=5 must be 0 (none), 8 or 4\n"


def test_the_text_must_exist_and_be_utf8(lite, tmp_path):
    assert lite("perplexity", "--text", str(tmp_path / "none.txt"))[0] == 2
    (tmp_path / "latin.txt").write_bytes(b"n\xe9")
    status, _, err, _ = lite("perplexity", "--text", str(tmp_path / "latin.txt"))
    assert status == 2
    assert "must be UTF-8" in err
