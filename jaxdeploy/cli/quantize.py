"""``jaxdeploy lite auto_awq | auto_gptq | auto_round | calibrate``: options, with LMDeploy's names."""

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from jaxdeploy.cli import options
from jaxdeploy.cli.command_group import CommandGroup
from jaxdeploy.cli.options import DEFAULTS
from jaxdeploy.errors import ConfigError
from jaxdeploy.lite.recipe import FORMATS, SCALINGS, Calibration, Recipe

RECIPE, SAMPLES = Recipe(), Calibration()
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_SWITCHES = ("--search-scale", "--clip", "--act-order")


class SwitchCommand(TyperCommand):
    """A command whose switches may stand alone or before a value: ``--search-scale``, ``--search-scale False``."""

    def parse_args(self, ctx, args):
        """Give a switch that stands alone its value."""
        filled: list[str] = []
        for index, argument in enumerate(args):
            filled.append(argument)
            following = args[index + 1].lower() if index + 1 < len(args) else ""
            if argument.replace("_", "-") in _SWITCHES and following not in (*_TRUE, *_FALSE):
                filled.append("true")
        return super().parse_args(ctx, filled)


def parse_switch(option: str, text: str) -> bool:
    """``"True"`` or ``"False"`` in any spelling. Raises ConfigError for anything else."""
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ConfigError(f"{option} {text!r} must be True or False")
    return text.lower() in _TRUE


WorkDir = Annotated[
    Path, typer.Option("--work-dir", help="Folder to write; it appears when it is complete.", file_okay=False)
]
CalibDataset = Annotated[
    str | None,
    typer.Option(
        "--calib-dataset",
        metavar="FILE|FOLDER|NAME|self",
        help="Text to calibrate on: a .txt, .jsonl or .parquet file, a folder of them, ptb, wikitext2, c4 or pileval (through "
        "the package datasets), or self: text sampled from the model. Default: wikitext2, else self.",
        show_default=False,
    ),
]
CalibSamples = Annotated[int, typer.Option("--calib-samples", help="Calibration samples.")]
CalibSeqlen = Annotated[int, typer.Option("--calib-seqlen", help="Tokens of a sample.")]
CalibChat = Annotated[bool, typer.Option("--calib-chat", help="Put calibration texts into the model's chat format.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Samples that pass through a layer at once.")]
Bits = Annotated[int, typer.Option("--w-bits", help="Bits of a weight: 4.")]
GroupSize = Annotated[int, typer.Option("--w-group-size", help="Inputs that share a scale; -1: all.")]
SearchScale = Annotated[
    str,
    typer.Option(
        "--search-scale",
        metavar="[True|False]",
        help="AWQ: search each pair's scale; False takes alpha 0.5 everywhere, LMDeploy's default.",
    ),
]
Scaling = Annotated[
    str,
    typer.Option("--scaling", metavar="|".join(SCALINGS), help="AWQ's scales of input channels before rounding."),
]
OwnScaling = Annotated[
    str | None,
    typer.Option(
        "--scaling",
        metavar="|".join(SCALINGS),
        help="Instead of --search-scale; none, with --clip False, is plain rounding to nearest.",
        show_default=False,
    ),
]
SearchTokens = Annotated[int, typer.Option("--search-tokens", help="Most calibration tokens of a trial of a scale.")]
Clip = Annotated[str, typer.Option("--clip", metavar="[True|False]", help="Search each group's range.")]
Format = Annotated[str, typer.Option("--format", metavar="|".join(FORMATS), help="Layout of the checkpoint.")]
RotateValues = Annotated[
    bool,
    typer.Option(
        "--rotate-values",
        help="Fold the KV cache's rotation of values into the weights; other engines run them all the same.",
    ),
]
ActOrder = Annotated[
    str,
    typer.Option("--act-order", metavar="[True|False]", help="GPTQ: round the most important columns first."),
]
Steps = Annotated[int, typer.Option("--steps", help="Gradient steps per layer.")]
StepTokens = Annotated[int, typer.Option("--step-tokens", help="Calibration tokens of a gradient step.")]
EvalText = Annotated[
    str | None,
    typer.Option(
        "--eval-text",
        metavar="FILE",
        help="Text to measure perplexity on, before and after. Default: samples that were not calibrated on.",
        show_default=False,
    ),
]
EvalSamples = Annotated[int, typer.Option("--eval-samples", help="Samples to measure perplexity on; 0: don't.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the choice of samples, and of gradient steps.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run has done.")]
Force = Annotated[bool, typer.Option("--force", help="Replace --work-dir if it holds a model.")]


app = typer.Typer(cls=CommandGroup, add_completion=False)


@app.command("auto_awq", cls=SwitchCommand)
def auto_awq(
    model: options.Model = None,
    work_dir: WorkDir = Path("work_dir"),
    calib_dataset: CalibDataset = None,
    calib_samples: CalibSamples = SAMPLES.samples,
    calib_seqlen: CalibSeqlen = SAMPLES.seqlen,
    calib_chat: CalibChat = False,
    batch_size: BatchSize = SAMPLES.batch_size,
    w_bits: Bits = RECIPE.bits,
    w_group_size: GroupSize = RECIPE.group_size,
    search_scale: SearchScale = "True",
    search_tokens: SearchTokens = RECIPE.search_tokens,
    scaling: OwnScaling = None,
    clip: Clip = "True",
    format: Format = RECIPE.format,
    rotate_values: RotateValues = RECIPE.rotate_values,
    eval_text: EvalText = None,
    eval_samples: EvalSamples = SAMPLES.eval_samples,
    seed: Seed = RECIPE.seed,
    resume: Resume = False,
    force: Force = False,
    compile_cache: options.CompileCache = DEFAULTS.compile_cache,
) -> None:
    """Int4 weights by activation-aware scaling (AWQ): scales and ranges are searched, weights rounded to nearest."""
    calibration = Calibration(
        dataset=calib_dataset,
        samples=calib_samples,
        seqlen=calib_seqlen,
        batch_size=batch_size,
        chat=calib_chat,
        eval_text=eval_text,
        eval_samples=eval_samples,
        sample_seed=seed,
    )
    recipe = Recipe(
        bits=w_bits,
        group_size=w_group_size,
        format=format,
        rotate_values=rotate_values,
        seed=seed,
        scaling=scaling or ("search" if parse_switch("--search-scale", search_scale) else "fixed"),
        search_tokens=search_tokens,
        clip=parse_switch("--clip", clip),
    )
    _quantize(model, work_dir, recipe, calibration, resume, force, compile_cache)


@app.command("auto_gptq", cls=SwitchCommand)
def auto_gptq(
    model: options.Model = None,
    work_dir: WorkDir = Path("work_dir"),
    calib_dataset: CalibDataset = None,
    calib_samples: CalibSamples = SAMPLES.samples,
    calib_seqlen: CalibSeqlen = SAMPLES.seqlen,
    calib_chat: CalibChat = False,
    batch_size: BatchSize = SAMPLES.batch_size,
    w_bits: Bits = RECIPE.bits,
    w_group_size: GroupSize = RECIPE.group_size,
    scaling: Scaling = RECIPE.scaling,
    search_tokens: SearchTokens = RECIPE.search_tokens,
    clip: Clip = "True",
    act_order: ActOrder = "False",
    format: Format = RECIPE.format,
    rotate_values: RotateValues = RECIPE.rotate_values,
    eval_text: EvalText = None,
    eval_samples: EvalSamples = SAMPLES.eval_samples,
    seed: Seed = RECIPE.seed,
    resume: Resume = False,
    force: Force = False,
    compile_cache: options.CompileCache = DEFAULTS.compile_cache,
) -> None:
    """Int4 weights by AWQ's scales and ranges and GPTQ's rounding: the best of the three for its time.

    Columns are rounded one by one, and the rest makes up for the error. `--scaling none --clip False` is GPTQ alone.
    """
    calibration = Calibration(
        dataset=calib_dataset,
        samples=calib_samples,
        seqlen=calib_seqlen,
        batch_size=batch_size,
        chat=calib_chat,
        eval_text=eval_text,
        eval_samples=eval_samples,
        sample_seed=seed,
    )
    recipe = Recipe(
        bits=w_bits,
        group_size=w_group_size,
        format=format,
        rotate_values=rotate_values,
        seed=seed,
        scaling=scaling,
        search_tokens=search_tokens,
        clip=parse_switch("--clip", clip),
        rounding="gptq",
        act_order=parse_switch("--act-order", act_order),
    )
    _quantize(model, work_dir, recipe, calibration, resume, force, compile_cache)


@app.command("auto_round", cls=SwitchCommand)
def auto_round(
    model: options.Model = None,
    work_dir: WorkDir = Path("work_dir"),
    calib_dataset: CalibDataset = None,
    calib_samples: CalibSamples = SAMPLES.samples,
    calib_seqlen: CalibSeqlen = SAMPLES.seqlen,
    calib_chat: CalibChat = False,
    batch_size: BatchSize = SAMPLES.batch_size,
    w_bits: Bits = RECIPE.bits,
    w_group_size: GroupSize = RECIPE.group_size,
    scaling: Scaling = "none",
    clip: Clip = "False",
    steps: Steps = RECIPE.steps,
    step_tokens: StepTokens = RECIPE.step_tokens,
    format: Format = RECIPE.format,
    rotate_values: RotateValues = RECIPE.rotate_values,
    eval_text: EvalText = None,
    eval_samples: EvalSamples = SAMPLES.eval_samples,
    seed: Seed = RECIPE.seed,
    resume: Resume = False,
    force: Force = False,
    compile_cache: options.CompileCache = DEFAULTS.compile_cache,
) -> None:
    """Int4 weights by learned rounding and clipping: signed gradient steps through each layer."""
    calibration = Calibration(
        dataset=calib_dataset,
        samples=calib_samples,
        seqlen=calib_seqlen,
        batch_size=batch_size,
        chat=calib_chat,
        eval_text=eval_text,
        eval_samples=eval_samples,
        sample_seed=seed,
    )
    recipe = Recipe(
        bits=w_bits,
        group_size=w_group_size,
        format=format,
        rotate_values=rotate_values,
        seed=seed,
        scaling=scaling,
        clip=parse_switch("--clip", clip),
        rounding="learned",
        steps=steps,
        step_tokens=step_tokens,
    )
    _quantize(model, work_dir, recipe, calibration, resume, force, compile_cache)


@app.command()
def calibrate(
    model: options.Model = None,
    work_dir: WorkDir = Path("work_dir"),
    calib_dataset: CalibDataset = None,
    calib_samples: CalibSamples = SAMPLES.samples,
    calib_seqlen: CalibSeqlen = SAMPLES.seqlen,
    calib_chat: CalibChat = False,
    batch_size: BatchSize = SAMPLES.batch_size,
    seed: Seed = RECIPE.seed,
    force: Force = False,
    compile_cache: options.CompileCache = DEFAULTS.compile_cache,
) -> None:
    """Write statistics of every linear module's inputs, and quantize nothing."""
    calibration = Calibration(
        dataset=calib_dataset,
        samples=calib_samples,
        seqlen=calib_seqlen,
        batch_size=batch_size,
        chat=calib_chat,
        eval_samples=0,
        sample_seed=seed,
    )
    from jaxdeploy.cli.compile_cache import compile_cache_folder
    from jaxdeploy.cli.progress_bars import ProgressBars
    from jaxdeploy.lite.calibrate import write_statistics

    cache = compile_cache_folder() if compile_cache is None else compile_cache
    with ProgressBars() as progress:
        file = write_statistics(model, work_dir, calibration, force=force, compile_cache=cache, progress=progress)
    print(f"wrote {file}")


def _quantize(
    model: str | None,
    work_dir: Path,
    recipe: Recipe,
    calibration: Calibration,
    resume: bool,
    force: bool,
    compile_cache: str | None,
) -> None:
    # Here and not above: bad options are refused, and help is shown, without waiting for jax.
    from jaxdeploy.cli.compile_cache import compile_cache_folder
    from jaxdeploy.cli.progress_bars import ProgressBars
    from jaxdeploy.lite.quantize import quantize_model
    from jaxdeploy.lite.report import report_lines

    cache = compile_cache_folder() if compile_cache is None else compile_cache
    with ProgressBars() as progress:
        report = quantize_model(
            model,
            work_dir,
            recipe,
            calibration,
            resume=resume,
            force=force,
            compile_cache=cache,
            progress=progress,
        )
    print("\n".join(report_lines(report)))
