"""The programs that an engine needs, each with the name that the engine has for it."""

from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.engine.batch import StepLayout
from jaxdeploy.engine.buckets import Bucket
from jaxdeploy.engine.step import Program, Scores, model_program, sampler_program
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.sampling.extent import Extent
from jaxdeploy.sampling.slots import SlotState

type ProgramName = Bucket | tuple[Extent, int]
"""Of a model its bucket, of a sampler its extent and number of rows."""


@dataclass(frozen=True)
class ProgramSet:
    """All programs of an engine, for shapes alone. It can be pickled, but for shapes that name a device (``anywhere``).

    Attributes:
        layouts: of each bucket.
        weights, pages, state, scores: ShapeDtypeStructs; scores by number of rows.
        platform: that the programs are for: "gpu" or "cpu".
    """

    model: Decoder
    layouts: dict[Bucket, StepLayout]
    weights: dict
    pages: KVPages
    state: SlotState
    scores: dict[int, Scores]
    platform: str

    def __getitem__(self, name: ProgramName) -> Program:
        """The program of that name."""
        if isinstance(name, Bucket):
            scores = self.scores[name.sampler_rows]
            return model_program(
                self.model, self.layouts[name], self.weights, self.pages, scores, self.state.last_token,
                platform=self.platform,
            )  # fmt: skip
        extent, rows = name
        return sampler_program(extent, self.state, self.scores[rows], platform=self.platform)

    def names(self) -> list[ProgramName]:
        """Of every program, those that take longest to compile first."""
        # The model program knows the likeliest tokens.
        samplers = [(extent, rows) for extent in Extent if extent is not Extent.GREEDY for rows in self.scores]
        return [*reversed(self.layouts), *samplers]

    def anywhere(self) -> "ProgramSet":
        """The same on no device in particular."""
        shapes = self.weights, self.pages, self.state, self.scores
        weights, pages, state, scores = jax.tree.map(_without_sharding, shapes)
        return replace(self, weights=weights, pages=pages, state=state, scores=scores)


def _without_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
