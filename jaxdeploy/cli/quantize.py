"""``jaxdeploy lite auto_awq | auto_gptq | auto_round | calibrate``: options, with LMDeploy's names."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from jaxdeploy.cli.command_group import CommandGroup
from jaxdeploy.cli.option_group import with_options
from jaxdeploy.cli.options import DEFAULTS, CompileCache, Model
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
ActOrder = Annotated[
    str,
    typer.Option("--act-order", metavar="[True|False]", help="GPTQ: round the most important columns first."),
]
Steps = Annotated[int, typer.Option("--steps", help="Gradient steps per layer.")]
StepTokens = Annotated[int, typer.Option("--step-tokens", help="Calibration tokens of a gradient step.")]


@dataclass(frozen=True, slots=True)
class SharedOptions:
    """Options of all four commands as they are typed, in the help's order; a method's own stand before ``--format``."""

    model: Model = None
    work_dir: Annotated[
        Path, typer.Option("--work-dir", help="Folder to write; it appears when it is complete.", file_okay=False)
    ] = Path("work_dir")
    calib_dataset: Annotated[
        str | None,
        typer.Option(
            "--calib-dataset",
            metavar="FILE|FOLDER|NAME|self",
            help="Text to calibrate on: a .txt, .jsonl or .parquet file, a folder of them, ptb, wikitext2, c4 or pileval (through "
            "the package datasets), or self: text sampled from the model. Default: wikitext2, else self.",
            show_default=False,
        ),
    ] = None
    calib_samples: Annotated[int, typer.Option("--calib-samples", help="Calibration samples.")] = SAMPLES.samples
    calib_seqlen: Annotated[int, typer.Option("--calib-seqlen", help="Tokens of a sample.")] = SAMPLES.seqlen
    calib_chat: Annotated[
        bool, typer.Option("--calib-chat", help="Put calibration texts into the model's chat format.")
    ] = SAMPLES.chat
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples that pass through a layer at once.")] = (
        SAMPLES.batch_size
    )
    w_bits: Annotated[int, typer.Option("--w-bits", help="Bits of a weight: 4.")] = RECIPE.bits
    w_group_size: Annotated[int, typer.Option("--w-group-size", help="Inputs that share a scale; -1: all.")] = (
        RECIPE.group_size
    )
    format: Annotated[str, typer.Option("--format", metavar="|".join(FORMATS), help="Layout of the checkpoint.")] = (
        RECIPE.format
    )
    rotate_values: Annotated[
        bool,
        typer.Option(
            "--rotate-values",
            help="Fold the KV cache's rotation of values into the weights; other engines run them all the same.",
        ),
    ] = RECIPE.rotate_values
    eval_text: Annotated[
        str | None,
        typer.Option(
            "--eval-text",
            metavar="FILE",
            help="Text to measure perplexity on, before and after. Default: samples that were not calibrated on.",
            show_default=False,
        ),
    ] = None
    eval_samples: Annotated[int, typer.Option("--eval-samples", help="Samples to measure perplexity on; 0: don't.")] = (
        SAMPLES.eval_samples
    )
    seed: Annotated[int, typer.Option("--seed", help="Of the choice of samples, and of gradient steps.")] = RECIPE.seed
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run has done.")] = False
    force: Annotated[bool, typer.Option("--force", help="Replace --work-dir if it holds a model.")] = False
    compile_cache: CompileCache = DEFAULTS.compile_cache

    def calibration(self) -> Calibration:
        """What to calibrate and measure on. Raises ConfigError for a value that can't work."""
        return Calibration(
            dataset=self.calib_dataset,
            samples=self.calib_samples,
            seqlen=self.calib_seqlen,
            batch_size=self.batch_size,
            chat=self.calib_chat,
            eval_text=self.eval_text,
            eval_samples=self.eval_samples,
            sample_seed=self.seed,
        )

    def recipe(self) -> Recipe:
        """What all methods share of a recipe. Raises ConfigError for a value that can't work."""
        return Recipe(
            bits=self.w_bits,
            group_size=self.w_group_size,
            format=self.format,
            rotate_values=self.rotate_values,
            seed=self.seed,
        )


app = typer.Typer(cls=CommandGroup, add_completion=False)


@app.command("auto_awq", cls=SwitchCommand)
@with_options("shared", SharedOptions(), own_before="format")
def auto_awq(
    *,
    search_scale: SearchScale = "True",
    search_tokens: SearchTokens = RECIPE.search_tokens,
    scaling: OwnScaling = None,
    clip: Clip = "True",
    shared: SharedOptions,
) -> None:
    """Int4 weights by activation-aware scaling (AWQ): scales and ranges are searched, weights rounded to nearest."""
    calibration = shared.calibration()
    recipe = replace(
        shared.recipe(),
        scaling=scaling or ("search" if parse_switch("--search-scale", search_scale) else "fixed"),
        search_tokens=search_tokens,
        clip=parse_switch("--clip", clip),
    )
    _quantize(shared, recipe, calibration)


@app.command("auto_gptq", cls=SwitchCommand)
@with_options("shared", SharedOptions(), own_before="format")
def auto_gptq(
    *,
    scaling: Scaling = RECIPE.scaling,
    search_tokens: SearchTokens = RECIPE.search_tokens,
    clip: Clip = "True",
    act_order: ActOrder = "False",
    shared: SharedOptions,
) -> None:
    """Int4 weights by AWQ's scales and ranges and GPTQ's rounding: the best of the three for its time.

    Columns are rounded one by one, and the rest makes up for the error. `--scaling none --clip False` is GPTQ alone.
    """
    calibration = shared.calibration()
    recipe = replace(
        shared.recipe(),
        scaling=scaling,
        search_tokens=search_tokens,
        clip=parse_switch("--clip", clip),
        rounding="gptq",
        act_order=parse_switch("--act-order", act_order),
    )
    _quantize(shared, recipe, calibration)


@app.command("auto_round", cls=SwitchCommand)
@with_options("shared", SharedOptions(), own_before="format")
def auto_round(
    *,
    scaling: Scaling = "none",
    clip: Clip = "False",
    steps: Steps = RECIPE.steps,
    step_tokens: StepTokens = RECIPE.step_tokens,
    shared: SharedOptions,
) -> None:
    """Int4 weights by learned rounding and clipping: signed gradient steps through each layer."""
    calibration = shared.calibration()
    recipe = replace(
        shared.recipe(),
        scaling=scaling,
        clip=parse_switch("--clip", clip),
        rounding="learned",
        steps=steps,
        step_tokens=step_tokens,
    )
    _quantize(shared, recipe, calibration)


@app.command()
@with_options(
    "shared",
    SharedOptions(eval_samples=0),
    without=["w_bits", "w_group_size", "format", "rotate_values", "eval_text", "eval_samples", "resume"],
)
def calibrate(*, shared: SharedOptions) -> None:
    """Write statistics of every linear module's inputs, and quantize nothing."""
    calibration = shared.calibration()
    from jaxdeploy.cli.progress_bars import ProgressBars
    from jaxdeploy.lite.calibrate import write_statistics

    with ProgressBars() as progress:
        file = write_statistics(
            shared.model,
            shared.work_dir,
            calibration,
            force=shared.force,
            compile_cache=_cache_folder(shared),
            progress=progress,
        )
    print(f"wrote {file}")


def _quantize(shared: SharedOptions, recipe: Recipe, calibration: Calibration) -> None:
    # Here and not above: bad options are refused, and help is shown, without waiting for jax.
    from jaxdeploy.cli.progress_bars import ProgressBars
    from jaxdeploy.lite.quantize import quantize_model
    from jaxdeploy.lite.report import report_lines
    from jaxdeploy.lite.work_folder import finished_layers, partial_folder

    try:
        with ProgressBars() as progress:
            report = quantize_model(
                shared.model,
                shared.work_dir,
                recipe,
                calibration,
                resume=shared.resume,
                force=shared.force,
                compile_cache=_cache_folder(shared),
                progress=progress,
            )
    except KeyboardInterrupt:
        if done := finished_layers(shared.work_dir):
            kept = f"finished layers kept in {partial_folder(shared.work_dir)}: {done}"
            print(f"interrupted; {kept}; the same command with --resume goes on", file=sys.stderr)
        raise
    print("\n".join(report_lines(report)))


def _cache_folder(shared: SharedOptions) -> str:
    from jaxdeploy.cli.compile_cache import compile_cache_folder

    return compile_cache_folder() if shared.compile_cache is None else shared.compile_cache
