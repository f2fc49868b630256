"""What the sampler knows of each running sequence, kept on the device: one slot a sequence, written when it is admitted."""

from dataclasses import replace

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from jaxdeploy.config.generation import MAX_LOGIT_BIAS, GenerationConfig
from jaxdeploy.pytree import Leaf

MAX_STOP_IDS = 32
"""End tokens that min_new_tokens can hold back, per request."""


@flax.struct.dataclass
class SlotOptions:
    """Sampling options of S slots (or, with S absent, of one): GenerationConfig as arrays of fixed shape.

    Token-id lists are padded with -1.
    """

    temperature: Leaf  # float32 [S]; 0 is greedy
    top_k: Leaf  # int32 [S]; 0 is off
    top_p: Leaf  # float32 [S]
    min_p: Leaf  # float32 [S]
    repetition_penalty: Leaf  # float32 [S]
    presence_penalty: Leaf  # float32 [S]
    frequency_penalty: Leaf  # float32 [S]
    seed: Leaf  # uint32 [S]
    min_new_tokens: Leaf  # int32 [S]
    stop_ids: Leaf  # int32 [S, MAX_STOP_IDS]
    bias_ids: Leaf  # int32 [S, MAX_LOGIT_BIAS]
    bias_values: Leaf  # float32 [S, MAX_LOGIT_BIAS]
    logprobs: Leaf  # bool [S]

    @classmethod
    def of(cls, config: GenerationConfig, *, seed: int, stop_ids: tuple[int, ...]) -> "SlotOptions":
        """One slot's options as numpy arrays.

        Args:
            config: the request's options; its ``bad_token_ids`` become a bias of minus infinity.
            seed: of this answer.
            stop_ids: tokens that end the answer, held back until ``min_new_tokens``.
        """
        bias = {**config.logit_bias, **dict.fromkeys(config.bad_token_ids, -np.inf)}
        return cls(
            temperature=np.float32(0.0 if config.greedy else config.temperature),
            top_k=np.int32(config.top_k),
            top_p=np.float32(config.top_p),
            min_p=np.float32(config.min_p),
            repetition_penalty=np.float32(config.repetition_penalty),
            presence_penalty=np.float32(config.presence_penalty),
            frequency_penalty=np.float32(config.frequency_penalty),
            seed=np.uint32(seed % 2**32),
            min_new_tokens=np.int32(config.min_new_tokens),
            stop_ids=_padded(stop_ids, MAX_STOP_IDS, -1, np.int32),
            bias_ids=_padded(bias.keys(), MAX_LOGIT_BIAS, -1, np.int32),
            bias_values=_padded(bias.values(), MAX_LOGIT_BIAS, 0, np.float32),
            logprobs=np.bool_(config.logprobs is not None),
        )

    @classmethod
    def neutral(cls) -> "SlotOptions":
        """Of a slot that nobody has: greedy, and nothing else."""
        return cls.of(GenerationConfig(), seed=0, stop_ids=())

    def packed(self, slot: int) -> np.ndarray:
        """One slot's options, and which slot it is, as one int32 array: fourteen uploads cost fourteen times one."""
        leaves = jax.tree.leaves(self)
        words = [leaf.astype(np.int32) if leaf.dtype == bool else leaf.view(np.int32) for leaf in leaves]
        return np.concatenate([np.atleast_1d(word) for word in (np.int32(slot), *words)])

    @classmethod
    def unpack(cls, packed: Int32[Array, " n"]) -> "tuple[Int32[Array, ''], SlotOptions]":
        """The slot and the options that ``packed`` wrote, inside a compiled program."""
        leaves, structure = jax.tree.flatten(cls.neutral())
        found, start = [], 1
        for leaf in leaves:
            words = packed[start : start + leaf.size].reshape(leaf.shape)
            start += leaf.size
            found.append(words != 0 if leaf.dtype == bool else jax.lax.bitcast_convert_type(words, leaf.dtype))
        return packed[0], structure.unflatten(found)


def _padded(values, size: int, fill: int, dtype) -> np.ndarray:
    out = np.full(size, fill, dtype)
    values = list(values)
    out[: len(values)] = values
    return out


@flax.struct.dataclass
class SlotState:
    """All slots' state. Donated to every step and updated in place. The last slot belongs to padding rows and stays neutral.

    Attributes:
        options: sampling options.
        in_prompt: tokens that occur in the slot's prompt.
        in_answer: how often each token occurs in its answer.
        mask: one bit per token, set where a grammar allows it (little-endian words); read where ``has_mask``.
        last_token: the token sampled last, which the next decode step feeds without asking the host.
    """

    options: SlotOptions
    in_prompt: Leaf  # bool [S, V]
    in_answer: Leaf  # int32 [S, V]
    mask: Leaf  # uint32 [S, ceil(V / 32)]
    has_mask: Leaf  # bool [S]
    last_token: Leaf  # int32 [S]

    @classmethod
    def create(cls, slots: int, vocab_size: int) -> "SlotState":
        """Empty slots on the default device."""
        neutral = SlotOptions.neutral()
        return cls(
            options=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (slots, *np.shape(leaf))).copy(), neutral),
            in_prompt=jnp.zeros((slots, vocab_size), bool),
            in_answer=jnp.zeros((slots, vocab_size), jnp.int32),
            mask=jnp.zeros((slots, -(-vocab_size // 32)), jnp.uint32),
            has_mask=jnp.zeros(slots, bool),
            last_token=jnp.zeros(slots, jnp.int32),
        )

    def admit(self, packed: Int32[Array, " n"]) -> "SlotState":
        """Hand a slot to a new sequence (``SlotOptions.packed``): its options, nothing counted, no grammar."""
        slot, options = SlotOptions.unpack(packed)
        return replace(
            self,
            options=jax.tree.map(lambda all_slots, one: all_slots.at[slot].set(one), self.options, options),
            in_prompt=self.in_prompt.at[slot].set(False),
            in_answer=self.in_answer.at[slot].set(0),
            has_mask=self.has_mask.at[slot].set(False),
        )

    def set_mask(self, slot: Int32[Array, ""], mask: Array) -> "SlotState":
        """Allow a slot only the tokens whose bit is set in ``mask`` (uint32 [ceil(V / 32)]) until it is set again."""
        return replace(self, mask=self.mask.at[slot].set(mask), has_mask=self.has_mask.at[slot].set(True))

    def count(
        self, slots: Int32[Array, " T"], tokens: Int32[Array, " T"], prompt: Bool[Array, " T"], valid: Bool[Array, " T"]
    ) -> "SlotState":
        """Note the tokens that a step feeds; every token of a sequence is fed exactly once before it could matter."""
        nobody = self.last_token.shape[0]
        prompt_slots = jnp.where(valid & prompt, slots, nobody)
        answer_slots = jnp.where(valid & ~prompt, slots, nobody)
        return replace(
            self,
            in_prompt=self.in_prompt.at[prompt_slots, tokens].set(True, mode="drop"),
            in_answer=self.in_answer.at[answer_slots, tokens].add(1, mode="drop"),
        )
