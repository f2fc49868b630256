"""Calls of paged attention compiled side by side, each with a cache to run it on."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from support.attention_cache import LAYER, Cache, queries

from pallas_kernels.paged_attention.api import paged_decode, paged_prefill
from pallas_kernels.paged_attention.reference import Pages


@dataclass(frozen=True, slots=True)
class Setup:
    """A shape of attention.

    Attributes:
        lens: tokens of each sequence in its cache.
        tokens: query tokens of a ragged step; 0 for decode, where each row has one.
        mixed: rows of one query are taken by the decode kernel.
        batches: rows that decode is compiled for; all of ``lens`` if not given.
    """

    heads: int
    kv_heads: int
    head_dim: int
    page: int
    bits: int
    lens: tuple[int, ...]
    tokens: int = 0
    max_queries: int | None = None
    soft_cap: float = 0.0
    batches: tuple[int, ...] = ()
    mixed: bool = False

    def __str__(self) -> str:
        shape = f"{self.heads}x{self.kv_heads}x{self.head_dim}-page{self.page}-int{self.bits}"
        shape += "-mixed" if self.mixed else ""
        return shape + (f"-{self.max_queries}queries" if self.max_queries else "") + ("-cap" if self.soft_cap else "")


class Prepared:
    """A setup's cache, queries and programs, by number of rows."""

    def __init__(self, setup: Setup, implementation: str = "mosaic"):
        s = self.setup = setup
        self.cache = Cache(s.lens, kv_heads=s.kv_heads, head_dim=s.head_dim, bits=s.bits, page=s.page)
        self.q = queries(s.tokens or len(s.lens), s.heads, s.head_dim)
        self.options = options = {"scale": s.head_dim**-0.5, "soft_cap": s.soft_cap, "implementation": implementation}
        self.programs = {}
        for rows in s.batches or (len(s.lens),):
            if s.tokens:
                attend = partial(paged_prefill, **options, max_queries=s.max_queries, mixed=s.mixed)
                arguments = self._ragged(np.arange(rows), np.zeros(rows, np.int32), 0)
            else:
                attend = partial(paged_decode, **options)
                arguments = self._rows(np.arange(rows), 0)
            self.programs[rows] = jax.jit(partial(self._run, attend)).lower(*arguments).compile()

    def _run(self, attend, q, k, v, *rest):
        return attend(q, Pages(*k, self.setup.bits), Pages(*v, self.setup.bits), *rest)

    @property
    def _pools(self):
        return [(pages.values, pages.pairs) for pages in self.cache.pools]

    def _rows(self, rows, window):
        lens = jnp.asarray(self.cache.lens[rows])
        table = jnp.asarray(self.cache.table[rows])
        return self.q[rows], *self._pools, jnp.int32(LAYER), table, lens, jnp.int32(window)

    def _ragged(self, rows, news, window):
        starts = jnp.asarray(np.concatenate([[0], np.cumsum(news)]), jnp.int32)
        lens = jnp.asarray(np.where(news > 0, self.cache.lens[rows], 0), jnp.int32)
        table = jnp.asarray(self.cache.table[rows])
        return self.q, *self._pools, jnp.int32(LAYER), table, starts, lens, jnp.int32(window)

    def decode(self, rows=None, window: int = 0) -> np.ndarray:
        """One query of each row, all of them if not given."""
        rows = np.arange(len(self.setup.lens)) if rows is None else np.asarray(rows)
        return _floats(self.programs[len(rows)](*self._rows(rows, window)))

    def decode_again(self, times: int) -> list[np.ndarray]:
        """The same as ``decode`` so many times in one program, one after the other: each waits for the one before."""

        def run(q, *rest):
            outputs = []
            for _ in range(times):
                outputs.append(self._run(partial(paged_decode, **self.options), q, *rest))
                q = jnp.where(jnp.isfinite(outputs[-1]), q, 0)
            return outputs

        return [_floats(out) for out in jax.jit(run)(*self._rows(np.arange(len(self.setup.lens)), 0))]

    def ragged(self, news, window: int = 0, rows=None, q=None) -> np.ndarray:
        """The last ``news`` tokens of each row, rows taken in this order; ``q`` in place of the setup's own queries."""
        rows = np.arange(len(self.setup.lens)) if rows is None else np.asarray(rows)
        own, *rest = self._ragged(rows, np.asarray(news), window)
        return _floats(self.programs[len(rows)](own if q is None else q, *rest))

    def expected(self, news, window: int = 0) -> np.ndarray:
        """What ``ragged`` should be, by float64."""
        q, out, token = np.asarray(self.q.astype(jnp.float32), np.float64), np.zeros(self.q.shape), 0
        for row, new in enumerate(news):
            if new:
                part = slice(token, token + new)
                end = int(self.cache.lens[row])
                out[part] = self.cache.attend_last(q[part], row, end, window, self.setup.soft_cap)
                token += new
        return out


def _floats(out: jax.Array) -> np.ndarray:
    return np.asarray(out.astype(jnp.float32), np.float64)


def prepare(setups: list[Setup]) -> dict[Setup, Future[Prepared]]:
    """All of them at the same time; one that does not compile fails where its result is asked for."""
    with ThreadPoolExecutor() as pool:
        return {setup: pool.submit(Prepared, setup) for setup in setups}
