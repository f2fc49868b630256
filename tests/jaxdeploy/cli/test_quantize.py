"""jaxdeploy lite auto_awq and its siblings, with a quantization that runs no model."""

import sys
from types import ModuleType

import pytest

from jaxdeploy.cli.main import main
from jaxdeploy.cli.quantize import parse_switch
from jaxdeploy.errors import ConfigError
from jaxdeploy.lite.recipe import Calibration, Recipe

TUTORIAL = [
    "--calib-dataset", "ptb", "--calib-samples", "128", "--calib-seqlen", "2048", "--w-bits", "4", "--w-group-size", "128",
    "--batch-size", "1", "--search-scale", "False", "--work-dir", "DIR",
]  # fmt: skip


@pytest.fixture
def lite(monkeypatch, capsys):
    """Runs ``jaxdeploy lite``: lite(*arguments) -> status, stdout, stderr, calls."""

    def run(*arguments):
        calls = []

        def quantize_model(model, work_dir, recipe, calibration, **options):
            calls.append((model, str(work_dir), recipe, calibration, options))

        quantize, report = ModuleType("jaxdeploy.lite.quantize"), ModuleType("jaxdeploy.lite.report")
        quantize.__dict__["quantize_model"] = quantize_model
        report.__dict__["report_lines"] = lambda report: ["the report"]
        monkeypatch.setitem(sys.modules, "jaxdeploy.lite.quantize", quantize)
        monkeypatch.setitem(sys.modules, "jaxdeploy.lite.report", report)
        with pytest.raises(SystemExit) as exit_:
            main(["lite", *arguments])
        shown = capsys.readouterr()
        return exit_.value.code, shown.out, shown.err, calls

    return run


def test_the_tutorials_line_runs_as_it_stands(lite):
    status, out, _, ((model, work_dir, recipe, calibration, options),) = lite("auto_awq", "MODEL", *TUTORIAL)
    assert (status, out) == (0, "the report\n")
    assert (model, work_dir) == ("MODEL", "DIR")
    assert (recipe.scaling, recipe.rounding, recipe.format, recipe.group_size) == ("fixed", "nearest", "awq", 128)
    assert recipe.clip, "ranges are searched all the same"
    assert calibration == Calibration(dataset="ptb", samples=128, seqlen=2048, batch_size=1)
    assert not options["resume"]
    assert not options["force"]


@pytest.mark.parametrize(
    ("arguments", "scaling"),
    [
        ([], "search"),
        (["--search-scale"], "search"),
        (["--search-scale", "--resume"], "search"),
        (["--search_scale", "true"], "search"),
        (["--search-scale", "False"], "fixed"),
        (["--search-scale", "0", "MODEL"], "fixed"),
        (["--search-scale", "MODEL"], "search"),
    ],
)
def test_search_scale_with_and_without_a_value(lite, arguments: list[str], scaling: str):
    ((model, _, recipe, _, _),) = lite("auto-awq", *arguments)[3]
    assert recipe.scaling == scaling
    assert model == ("MODEL" if "MODEL" in arguments else None)


def test_plain_rounding_is_awq_without_anything(lite):
    recipe = lite("auto_awq", "--scaling", "none", "--clip", "False", "--search-tokens", "512")[3][0][2]
    assert recipe == Recipe(scaling="none", clip=False, search_tokens=512)


def test_each_command_is_its_method(lite):
    recipes = {name: lite(name)[3][0][2] for name in ("auto_awq", "auto_gptq", "auto_round")}
    assert [recipe.rounding for recipe in recipes.values()] == ["nearest", "gptq", "learned"]
    assert recipes["auto_gptq"] == Recipe(scaling="search", clip=True, rounding="gptq")
    changed = lite("auto_gptq", "--act-order", "--format", "gptq", "--scaling", "none", "--clip", "False")[3][0][2]
    assert changed == Recipe(scaling="none", clip=False, rounding="gptq", act_order=True, format="gptq")
    changed = lite("auto_round", "--steps", "50", "--step-tokens", "512", "--seed", "3")[3][0]
    assert (changed[2].steps, changed[2].step_tokens, changed[2].seed, changed[3].sample_seed) == (50, 512, 3, 3)


def test_bad_options_are_one_line(lite):
    for arguments, reason in (
        (["auto_awq", "--w-bits", "8"], "--w-bits 8 is not supported; it must be 4"),
        (["auto_awq", "--clip", "--w-group-size", "20"], "--w-group-size 20 must be a multiple of 8"),
        (["auto_gptq", "--format", "exl2"], "format='exl2' must be one of awq, gptq"),
        (["auto_round", "--calib-samples", "0"], "--calib-samples 0 must be at least 1"),
    ):
        status, _, err, calls = lite(*arguments)
        assert (status, calls) == (2, [])
        assert err.startswith("error: ")
        assert reason in err


def test_ctrl_c_says_how_to_go_on(lite, monkeypatch, tmp_path):
    (tmp_path / ".model.partial" / "layer-00000").mkdir(parents=True)
    monkeypatch.setattr("jaxdeploy.cli.progress_bars.ProgressBars.__enter__", interrupt)
    status, out, err, _ = lite("auto_awq", "M", "--work-dir", str(tmp_path / "model"))
    assert (status, out) == (130, "")
    assert f"layers kept in {tmp_path / '.model.partial'}: 1; the same command with --resume goes on" in err
    assert "kept" not in lite("auto_awq", "M", "--work-dir", str(tmp_path / "other"))[2]


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_switch_is_true_or_false():
    assert [parse_switch("--clip", text) for text in ("True", "no", "1", "OFF")] == [True, False, True, False]
    with pytest.raises(ConfigError, match="--clip 'maybe' must be True or False"):
        parse_switch("--clip", "maybe")


def test_calibrate(monkeypatch, capsys):
    calls = []
    module = ModuleType("jaxdeploy.lite.calibrate")
    module.__dict__["write_statistics"] = lambda *args, **options: (calls.append((args, options["force"])), "FILE")[1]
    monkeypatch.setitem(sys.modules, "jaxdeploy.lite.calibrate", module)
    with pytest.raises(SystemExit):
        main(["lite", "calibrate", "M", "--calib-dataset", "t.txt", "--work-dir", "D", "--force"])
    (((model, work_dir, calibration), force),) = calls
    assert (model, str(work_dir), force) == ("M", "D", True)
    assert calibration == Calibration(dataset="t.txt", eval_samples=0)
    assert capsys.readouterr().out == "wrote FILE\n"
