"""Sampling options of ``jaxdeploy chat``; what a value may be is GenerationConfig's business."""

from dataclasses import dataclass
from typing import Annotated

import typer

from jaxdeploy.config.generation import GenerationConfig

CHAT_TEMPERATURE = 0.8
"""Of a conversation: LMDeploy's for its chat command, as top-p and top-k are."""
_PANEL = "Sampling"


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Sampling options as they are typed, in the help's order."""

    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            help=f"Divides the logits; 0 always takes the likeliest token. Default: {CHAT_TEMPERATURE} in a conversation, "
            "0 with --prompt, so that a prompt always gets the same answer.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None
    top_p: Annotated[
        float,
        typer.Option(
            "--top-p", help="Sample among the likeliest tokens that reach this probability.", rich_help_panel=_PANEL
        ),
    ] = 0.8
    top_k: Annotated[
        int, typer.Option("--top-k", help="Sample among this many likeliest tokens; 0 is off.", rich_help_panel=_PANEL)
    ] = 40
    min_p: Annotated[
        float,
        typer.Option(
            "--min-p", help="Drop tokens below this share of the likeliest one's probability.", rich_help_panel=_PANEL
        ),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        typer.Option(
            "--repetition-penalty", help="Above 1 discourages tokens that were there before.", rich_help_panel=_PANEL
        ),
    ] = 1.0
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Most tokens of an answer.", rich_help_panel=_PANEL)
    ] = 512
    seed: Annotated[
        int | None, typer.Option("--seed", help="Makes sampled answers repeatable.", rich_help_panel=_PANEL)
    ] = None

    def config(self, *, one_shot: bool) -> GenerationConfig:
        """What answers are sampled with.

        Args:
            one_shot: True for ``--prompt``: greedy unless a temperature is given. A conversation samples unless it is 0.

        Raises:
            RequestError: a value that can't work.
        """
        temperature = self.temperature
        if temperature is None:
            temperature = 0.0 if one_shot else CHAT_TEMPERATURE
        return GenerationConfig(
            do_sample=temperature != 0,
            temperature=temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=self.max_new_tokens,
            random_seed=self.seed,
        )
