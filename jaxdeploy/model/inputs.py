"""What one forward pass is about: a ragged batch of tokens and where each stands in its sequence and in the cache."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from jaxdeploy.pytree import Leaf


@flax.struct.dataclass
class ModelInputs:
    """T tokens of B rows, laid end to end; what is left of T after the last row is padding.

    Attributes:
        tokens: token ids.
        positions: of each token in its sequence.
        rows: which row each token belongs to.
        query_start: row b owns tokens ``query_start[b]:query_start[b + 1]``; rows without tokens come last.
        context_lens: tokens of each row in the cache after this pass, its new ones included; 0 for a padding row.
        rope_lengths: tokens that each row's request can reach, fixed for its life (see ``inverse_frequencies``).
        block_table: pages of each row, in order. Entries past the context are not looked at.
        decode: every row has one token at most (T == B), which attention can use.
        max_queries: no row has more tokens than this, where they are few (a step that checks drafts), so that attention can read
            the cache as in decode; None for chunks of prompts. Not looked at in a decode step.
        mixed: many rows may have one token, which attention can treat as in decode. Not looked at where ``max_queries`` is given.
    """

    tokens: Leaf  # int32 [T]
    positions: Leaf  # int32 [T]
    rows: Leaf  # int32 [T]
    query_start: Leaf  # int32 [B+1]
    context_lens: Leaf  # int32 [B]
    rope_lengths: Leaf  # int32 [B]
    block_table: Leaf  # int32 [B, W]
    decode: bool = flax.struct.field(pytree_node=False, default=False)
    max_queries: int | None = flax.struct.field(pytree_node=False, default=None)
    mixed: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def valid(self) -> Bool[Array, " T"]:
        """False for padding."""
        return jnp.arange(self.tokens.shape[0], dtype=jnp.int32) < self.query_start[-1]

    @property
    def last_tokens(self) -> Int32[Array, " B"]:
        """Where each row's last token lies among the T; 0 for a row without tokens."""
        return jnp.maximum(self.query_start[1:] - 1, 0)

    def cache_places(self, page_size: int, num_pages: int) -> tuple[Int32[Array, " T"], Int32[Array, " T"]]:
        """(page id, offset in the page) of each token; padding gets the page id ``num_pages``, which writes drop."""
        pages = self.block_table[self.rows, self.positions // page_size]
        return jnp.where(self.valid, pages, num_pages), self.positions % page_size
