"""The programs that an engine needs, each with the name that the engine has for it."""

from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Sharding

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.engine.batch import StepLayout
from jaxdeploy.engine.buckets import Bucket, Buckets
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.step import Program, Scores, model_program, sampler_program
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.sampling.extent import Extent
from jaxdeploy.sampling.slots import SlotState

type ProgramName = Bucket | tuple[Extent, int]
"""Of a model its bucket, of a sampler its extent and number of rows."""


def create_pages(config: ModelConfig, options: EngineConfig, limits: Limits, num_pages: int) -> KVPages:
    """The pool that an engine's programs work on."""
    return KVPages.create(
        config, num_pages, page_size=limits.page_size, quant_policy=options.quant_policy, dtype=limits.dtype
    )


def create_state(config: ModelConfig, limits: Limits) -> SlotState:
    """The sampler's state: a slot for each answer, and one for padding."""
    return SlotState.create(limits.batch_size + 1, config.vocab_size)


def create_scores(config: ModelConfig, buckets: Buckets) -> dict[int, Scores]:
    """What models hand to samplers, by number of rows."""
    return {rows: Scores.create(rows, config.vocab_size) for rows in buckets.sampler_rows}


@dataclass(frozen=True)
class ProgramSet:
    """All programs of an engine, for shapes alone. It can be pickled while the shapes name no device (``placed``).

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

    @classmethod
    def of(
        cls,
        model: Decoder,
        weights: dict,
        options: EngineConfig,
        limits: Limits,
        buckets: Buckets,
        *,
        num_pages: int,
        platform: str,
    ) -> "ProgramSet":
        """Those for a pool of so many pages; shapes name no device, whatever those of ``weights`` do."""
        config = model.config
        pages, state, scores = jax.eval_shape(
            lambda: (
                create_pages(config, options, limits, num_pages),
                create_state(config, limits),
                create_scores(config, buckets),
            )
        )
        layouts = {
            bucket: StepLayout(bucket, limits.table_width, padding_slot=limits.batch_size) for bucket in buckets.all
        }
        return cls(model, layouts, weights, pages, state, scores, platform).placed(None)

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

    def placed(self, sharding: Sharding | None) -> "ProgramSet":
        """The same for arrays of that sharding; None is on no device in particular."""

        def described(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        shapes = self.weights, self.pages, self.state, self.scores
        weights, pages, state, scores = jax.tree.map(described, shapes)
        return replace(self, weights=weights, pages=pages, state=state, scores=scores)
