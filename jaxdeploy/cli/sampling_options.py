"""Sampling options of ``jaxdeploy chat``; what a value may be is GenerationConfig's business."""

from typing import Annotated

import typer

from jaxdeploy.config.generation import GenerationConfig

CHAT_TEMPERATURE = 0.8
"""Temperature, top-p and top-k of a conversation are LMDeploy's for its chat command."""
CHAT_TOP_P = 0.8
CHAT_TOP_K = 40
_PANEL = "Sampling"

Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        help=f"Divides the logits; 0 always takes the likeliest token. Default: {CHAT_TEMPERATURE} in a conversation, "
        "0 with --prompt, so that a prompt always gets the same answer.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p", help="Sample among the likeliest tokens that reach this probability.", rich_help_panel=_PANEL
    ),
]
TopK = Annotated[
    int, typer.Option("--top-k", help="Sample among this many likeliest tokens; 0 is off.", rich_help_panel=_PANEL)
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p", help="Drop tokens below this share of the likeliest one's probability.", rich_help_panel=_PANEL
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        "--repetition-penalty", help="Above 1 discourages tokens that were there before.", rich_help_panel=_PANEL
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", help="Most tokens of an answer.", rich_help_panel=_PANEL)
]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes sampled answers repeatable.", rich_help_panel=_PANEL)]


def generation_config(
    *,
    one_shot: bool,
    temperature: float | None,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float,
    max_new_tokens: int,
    seed: int | None,
) -> GenerationConfig:
    """The command line's sampling options as a GenerationConfig.

    Args:
        one_shot: True for ``--prompt``: greedy unless a temperature is given. A conversation samples unless it is 0.
        temperature: None takes the default of the case.

    Raises:
        RequestError: a value that can't work.
    """
    if temperature is None:
        temperature = 0.0 if one_shot else CHAT_TEMPERATURE
    return GenerationConfig(
        do_sample=temperature != 0,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        random_seed=seed,
    )
