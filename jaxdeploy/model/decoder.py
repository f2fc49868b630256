"""The decoder of every supported family, driven by its ModelConfig."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from jax import lax
from jaxtyping import Array, Float

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.model.inputs import ModelInputs
from jaxdeploy.model.layer import MOMENTS, DecoderLayer, StepContext
from jaxdeploy.model.linear import linear
from jaxdeploy.model.norm import RMSNorm
from jaxdeploy.model.parameter import Described, Source, described
from jaxdeploy.model.rope import inverse_frequencies, rotation_tables
from jaxdeploy.weights.int8_matrix import Int8Matrix
from jaxdeploy.weights.quant_tensor import QuantTensor
from jaxdeploy.weights.tiled_tensor import TiledTensor


class Decoder(nn.Module):
    """Token ids and a page pool in, hidden states (and logits on request) and the pool with the new tokens out.

    Attributes:
        config: sizes and variants.
        dtype: of activations and dense weights: float32, bfloat16 or float16.
        unroll: layers written out one after the other in each turn of the loop over layers.
    """

    config: ModelConfig
    dtype: str = "float32"
    unroll: int = 1

    def setup(self):
        """Declare the parameters outside of the layers; ``DecoderLayer`` declares the stacked ones."""
        c, dtype = self.config, jnp.dtype(self.dtype)
        vocabulary = (c.vocab_size, c.hidden_size)
        source = Source(("model.embed_tokens",), "weight", ("vocab", "embed"), stacked=False)
        self.embedding: Any = self.param(
            "embedding", described(nn.initializers.normal(0.02), source), vocabulary, dtype
        )
        self.rounded_head = self._rounded_head()
        if self.rounded_head is None and not c.tie_word_embeddings:
            source = Source(("lm_head",), "weight", ("vocab", "embed"), stacked=False)
            self.lm_head: Any = self.param(
                "lm_head", described(nn.initializers.normal(0.02), source), vocabulary, dtype
            )
        # Weights are broadcast, not scanned: a scan that slices them would copy each layer before a custom kernel.
        in_axes: Any = (0, nn.broadcast)
        scanned = nn.scan(
            DecoderLayer,
            variable_broadcast="params",
            variable_axes={MOMENTS: 0},
            split_rngs={"params": False},
            in_axes=in_axes,
            unroll=self.unroll,
            length=c.num_layers,
        )
        self.layers = scanned(c, self.dtype, name="layers")
        self.norm = RMSNorm("model.norm", c.hidden_size, c.rms_norm_eps, self.dtype, name="norm")

    def _rounded_head(self) -> QuantTensor | TiledTensor | Int8Matrix | None:
        """The output matrix where someone has handed in integers (``lite.head``); Flax would compare it with a dense one."""
        if not self.has_variable("params", "lm_head"):
            return None
        head: Any = meta.unbox(self.get_variable("params", "lm_head"))
        return head if isinstance(head, QuantTensor | TiledTensor | Int8Matrix) else None

    def __call__(self, inputs: ModelInputs, pages: KVPages) -> tuple[Float[Array, "T D"], KVPages]:
        """Run all layers.

        Returns:
            Normalized hidden states of every token (rows of padding are meaningless), and the pool; donate the one passed in.
        """
        c = self.config
        frequencies = inverse_frequencies(c.rope, c.head_dim, inputs.rope_lengths)[inputs.rows]
        cos, sin = rotation_tables(inputs.positions, frequencies, c.rope.attention_factor)
        page_ids, offsets = inputs.cache_places(pages.page_size, pages.num_pages)
        step = StepContext(inputs, cos, sin, page_ids, offsets)
        x = jnp.take(self.embedding, inputs.tokens, axis=0, mode="clip")
        windows = jnp.asarray(c.sliding_windows, jnp.int32)
        (_, x, delta, pages), _ = self.layers((jnp.int32(0), x, jnp.zeros_like(x), pages), windows, step)
        return self.norm.after_add(x, delta)[1], pages

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores of the next token, float32."""
        if isinstance(self.rounded_head, Int8Matrix):
            return self.rounded_head.product(hidden)
        if self.rounded_head is not None:
            return linear(hidden, self.rounded_head, jnp.int32(0)).astype(jnp.float32)
        head = self.embedding if self.config.tie_word_embeddings else self.lm_head
        contract = (((hidden.ndim - 1,), (1,)), ((), ()))
        return lax.dot_general(hidden, head, contract, preferred_element_type=jnp.float32)


def run_layers(
    decoder: Decoder, params: dict[str, Any], inputs: ModelInputs, pages: KVPages
) -> tuple[Float[Array, "T D"], KVPages]:
    """``Decoder.__call__`` as a function of its parameters."""
    result: Any = decoder.apply({"params": params}, inputs, pages)
    return result


def attention_moments(
    decoder: Decoder, params: dict[str, Any], inputs: ModelInputs, pages: KVPages
) -> tuple[Float[Array, "L K H H"], Float[Array, "L K H H"]]:
    """Second moments of the keys and the queries (after RoPE) of all tokens; for a model that ``rotates_keys``."""
    _, found = decoder.apply({"params": params}, inputs, pages, mutable=[MOMENTS])
    moments: Any = found[MOMENTS]["layers"]["attention"]
    return moments["keys"][0], moments["queries"][0]


def next_logits(decoder: Decoder, params: dict[str, Any], hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """``Decoder.logits`` as a function of its parameters."""
    result: Any = decoder.apply({"params": params}, hidden, method=Decoder.logits)
    return result


def _smallest_inputs() -> ModelInputs:
    token = jnp.zeros(1, jnp.int32)
    return ModelInputs(
        token, token, token, jnp.array([0, 1], jnp.int32), token + 1, token + 1, token[None], decode=True
    )


def describe_parameters(config: ModelConfig, dtype: str) -> dict:
    """The parameter tree without values: ``Described`` leaves over ShapeDtypeStructs (inside QuantTensors where quantized)."""

    def init():
        pages = KVPages.create(config, 1, page_size=1, dtype=dtype)
        return Decoder(config, dtype).init(jax.random.key(0), _smallest_inputs(), pages)

    return jax.eval_shape(init)["params"]


def random_parameters(config: ModelConfig, dtype: str, seed: int = 0) -> dict:
    """Random weights of the right shapes, for benchmarks: normal(0, 0.02), norms one, biases zero, int4 uniform."""

    def init():
        pages = KVPages.create(config, 1, page_size=1, dtype=dtype)
        return meta.unbox(Decoder(config, dtype).init(jax.random.key(seed), _smallest_inputs(), pages)["params"])

    return jax.jit(init)()


def is_described(node: object) -> bool:
    """True for the leaves of ``describe_parameters``."""
    return isinstance(node, Described)
