"""What a warp does with 16 tokens of K and V, and how the warps of a block join what they have."""

import functools
import math
from typing import TYPE_CHECKING, Any

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.ptx import Int, constant
from pallas_kernels.ptx_float import Float, any_lane, floats, transpose_matrix, unpack_pair

if TYPE_CHECKING:
    from pallas_kernels.paged_attention.decode_layout import Shape
    from pallas_kernels.paged_attention.unit_result import UnitResult

_LOWEST = -1e30
"""Maximum before any key was seen: finite, so that differences of two of them are."""
_SLACK = 4.0
"""Scores may pass the maximum by this much (in powers of two) before sums are brought to a new one: weights stay up to 16."""
_RAISE = 6.0
"""Integer caches: weights are kept 64 times larger, so that weight times scale stays clear of float16's subnormal numbers."""
_LOG2E = math.log2(math.e)
_ONES = 0x3C003C00  # float16 1, twice


class DecodeWarp:
    """Thread ``lane`` = (g, t) of a warp; columns of the products are query heads of the unit's query tokens, 8 to an ``mma``.

    The state is a flat list of float32: maxima, sums, and sums of weight times offset, each of columns (2t, 2t + 1) of every
    8; then the output of the thread's H / 8 values times those columns. Sums are the thread's own until ``join``.
    """

    def __init__(self, shape: "Shape", lane: Int):
        self.shape, self.lane = shape, lane
        self.stored, self.width = shape.stored, shape.width
        self.g, self.t = lane // 4, lane % 4
        self.eights = -(-shape.width // 8)
        self.blocks = shape.stored.head_dim // 16
        self.quantized = shape.stored.bits != 16

    @staticmethod
    def head_floats(head_dim: int) -> int:
        """Floats that one column's output takes in shared memory: gaps keep a warp's stores off each other's banks."""
        return 8 * (head_dim // 8 + 2) + 4

    def start(self) -> list[Any]:
        """The state before any key."""
        lowest, zero = Float(_LOWEST).value, Float(0.0).value
        return [lowest] * (2 * self.eights) + [zero] * ((4 + 4 * self.blocks) * self.eights)

    def load_queries(self, address: Int, valid: "Int | int") -> None:
        """Take the queries of a unit, [columns, H] in shared memory, of which the first ``valid`` are there."""
        s = self.shape
        self.queries, self.query_sums = [], []
        for eight in range(self.eights):
            column = self.g + 8 * eight
            row = address + ptx_sync.minimum(column, self.width - 1) * (2 * self.stored.head_dim)
            steps = self.stored.query_steps(row, self.t, s.query_dtype)
            steps = [tuple(w.select(column < valid, 0) for w in pair) for pair in steps]
            self.queries.append(steps)
            if self.quantized:
                # The sum over H for columns (2t, 2t + 1), in the place where the products of K come out.
                totals = [[Float(0.0).value] * 4 for _ in range(2)]
                for i, pair in enumerate(steps):
                    totals[i % 2] = ptx.mma([constant(_ONES)] * 4, pair, totals[i % 2], "f16")
                self.query_sums.append(
                    [(Float(x) + Float(y)) * self._score_scale for x, y in zip(*totals, strict=True)]
                )

    def look(self, first_column: Int, queries: Int, valid: Int, length: Int, first: Int, window: Int) -> None:
        """Of columns that don't all see the same: which tokens each one does, counted from ``first``, the first that any sees.

        Column c belongs to query token ``(first_column + c) // group`` of the ``queries`` that are a context's last tokens.
        """
        self.seen: list[tuple[Int, Int]] = []
        unlimited = ptx_sync.equal(window, 0)
        for k in range(2 * self.eights):
            column = self.t * 2 + (8 * (k // 2) + k % 2)
            end = length - (queries - 1 - (first_column + column) // self.shape.group)
            count = end.select(unlimited, ptx_sync.minimum(end, window))
            self.seen.append((end - count - first, count.select(column < valid, 0)))

    @property
    def _score_scale(self) -> float:
        return self.shape.scale if self.shape.soft_cap else self.shape.scale * _LOG2E

    def add(self, state: list[Any], pools: list[Int], tokens: list[Int], position: Int, seen: Int) -> list[Any]:
        """Take in 16 tokens for each of ``tokens``, their first rows in a tile in shared memory.

        The tile's first token lies ``position`` after the first one that a column sees, of ``seen`` in all. Tokens before that one
        have negative positions, which as unsigned numbers are past the end.
        """
        stored, g, t = self.stored, self.g, self.t
        size = stored.row_bytes
        keys = [[stored.key_words(pools[0] + (token + g + r) * size, t) for r in (0, 8)] for token in tokens]
        values = [
            [stored.value_words(pools[1] + (token + t * 2 + r) * size, g) for r in (0, 1, 8, 9)] for token in tokens
        ]
        visible = [[(position + token + g + r) < seen for r in (0, 8)] for token in tokens]
        by_column = [self._by_column(position + token, rows) for token, rows in zip(tokens, visible, strict=True)]
        key_pairs, value_pairs = (
            [[self._pair(base + (token + g + r) * 4) for r in (0, 8)] for token in tokens] if self.quantized else []
            for base in (pools[-2], pools[-1])
        )

        scores = [
            self._scores(keys[i], key_pairs[i] if self.quantized else [], by_column[i]) for i in range(len(tokens))
        ]
        maxima, sums, offsets, outputs = self._parts(self._raise_maximum(state, scores))
        references = [m - _RAISE for m in maxima] if self.quantized else maxima
        weights_of = []
        for i in range(len(tokens)):
            columns = []
            for eight in range(self.eights):
                words = []
                for r in range(2):
                    weights = []
                    for j in range(2):
                        k = 2 * eight + j
                        weight = (scores[i][eight][r][j] - references[k]).exp2()
                        sums[k] = sums[k] + weight
                        if self.quantized:
                            scale, offset = value_pairs[i][r]
                            offsets[k] = weight.fma(offset.select(visible[i][r], 0.0), offsets[k])
                            weight = weight * scale.select(visible[i][r], 0.0)
                        weights.append(weight.value)
                    words.append(transpose_matrix(ptx.pack_pair(weights[0], weights[1], stored.operand)))
                columns.append(words)
            weights_of.append(columns)

        for i, token in enumerate(tokens):
            low, high = (stored.value_rows(values[i][r], values[i][r + 1]) for r in (0, 2))
            if not self.quantized:
                # What an earlier owner left in the rest of a page may be a NaN: weight 0 doesn't silence that.
                masks = [self._pair_mask(position + token + t * 2 + r, seen) for r in (0, 8)]
                low, high = [w & masks[0] for w in low], [w & masks[1] for w in high]
            for block in range(self.blocks):
                a = [low[2 * block], low[2 * block + 1], high[2 * block], high[2 * block + 1]]
                for eight in range(self.eights):
                    place = 4 * (block * self.eights + eight)
                    accumulated = [v.value for v in outputs[place : place + 4]]
                    outputs[place : place + 4] = floats(ptx.mma(a, weights_of[i][eight], accumulated, stored.operand))
        return self._flat(maxima, sums, offsets, outputs)

    def _by_column(self, position: Int, rows: list[Any]) -> list[list[Any]]:
        """For each of the thread's columns whether it sees rows (g, g + 8); ``rows`` says which of them any column does."""
        if self.shape.uniform:
            return [rows] * (2 * self.eights)
        return [[(position + self.g + r - start) < count for r in (0, 8)] for start, count in self.seen]

    @staticmethod
    def _pair(address: Int) -> tuple[Float, Float]:
        """(scale, offset) of a token."""
        return unpack_pair(ptx.load_shared(address)[0], "f16")

    def _scores(self, keys, key_pairs, visible) -> list[list[list[Float]]]:
        """For each 8 columns, rows (g, g + 8), columns (2t, 2t + 1): scores in powers of two, minus infinity where not visible."""
        steps = list(zip(*(self.stored.key_steps(words) for words in keys), strict=True))
        all_scores = []
        for eight in range(self.eights):
            # Two chains of products: each waits for its own last result only.
            totals = [[Float(0.0).value] * 4 for _ in range(2)]
            for i, (first, second) in enumerate(steps):
                a = [first[0], second[0], first[1], second[1]]
                totals[i % 2] = ptx.mma(a, self.queries[eight][i], totals[i % 2], self.stored.operand)
            products = [Float(x) + Float(y) for x, y in zip(*totals, strict=True)]
            rows = []
            for r in range(2):
                row = []
                for j in range(2):
                    score = products[2 * r + j] * self._score_scale
                    if self.quantized:
                        scale, offset = key_pairs[r]
                        score = score.fma(scale, offset * self.query_sums[eight][j])
                    if cap := self.shape.soft_cap:
                        score = (score * (1.0 / cap)).tanh() * (cap * _LOG2E)
                    row.append(score.select(visible[2 * eight + j][r], float("-inf")))
                rows.append(row)
            all_scores.append(rows)
        return all_scores

    def _raise_maximum(self, state: list[Any], scores) -> list[Any]:
        """The state in units of the new maxima, if a score passes an old one by more than the slack."""
        maxima, sums, offsets, outputs = self._parts(state)
        tops = []
        for k in range(2 * self.eights):
            of_column = [rows[k // 2][r][k % 2] for rows in scores for r in range(2)]
            tops.append(functools.reduce(Float.max, of_column))
        passed = [top > maximum + _SLACK for top, maximum in zip(tops, maxima, strict=True)]
        some = passed[0]
        for other in passed[1:]:
            some = ptx_sync.either(some, other)

        def raised() -> list[Any]:
            new, decay = [], []
            for top, maximum in zip(tops, maxima, strict=True):
                for mask in (4, 8, 16):
                    top = top.max(top.from_lane_xor(mask))
                new.append(top.max(maximum))
                decay.append((maximum - new[-1]).exp2())
            return self._flat(
                new,
                [x * d for x, d in zip(sums, decay, strict=True)],
                [x * d for x, d in zip(offsets, decay, strict=True)],
                [x * decay[2 * (i // 4 % self.eights) + i % 2] for i, x in enumerate(outputs)],
            )

        return ptx_sync.choose(any_lane(some), raised, state)

    @staticmethod
    def _pair_mask(position: Int, seen: Int) -> Int:
        """Ones over the halves of a word whose token (position, position + 1) is seen."""
        low = constant(0xFFFF).select(position < seen, 0)
        return low + constant(-0x10000).select((position + 1) < seen, 0)

    def _parts(self, state: list[Any]) -> tuple[list[Float], list[Float], list[Float], list[Float]]:
        own, values = 2 * self.eights, floats(state)
        return values[:own], values[own : 2 * own], values[2 * own : 3 * own], values[3 * own :]

    @staticmethod
    def _flat(*parts: list[Float]) -> list[Any]:
        return [x.value for part in parts for x in part]

    def join(
        self,
        state: list[Any],
        stats: Int,
        outputs: Int,
        warp: Int,
        barrier: Int,
        result: "UnitResult",
        valid: "Int | int",
    ) -> None:
        """Join the states of a warpgroup and store the result, a row for each of the ``valid`` columns."""
        h = self.stored.head_dim
        maxima, sums, offsets, values = self._parts(state)
        for mask in (4, 8, 16):
            sums = [x + x.from_lane_xor(mask) for x in sums]
            offsets = [x + x.from_lane_xor(mask) for x in offsets]
        padded, per_column = 8 * self.eights, self.head_floats(h)
        with ptx_sync.when(ptx_sync.equal(self.g, 0)):
            for k in range(2 * self.eights):
                column = self.t * 2 + (8 * (k // 2) + k % 2)
                ptx.store_shared(stats + (warp * padded + column) * 16, maxima[k].value, sums[k].value)
        ptx_sync.sync_warpgroup(barrier)
        for k in range(2 * self.eights):
            column = self.t * 2 + (8 * (k // 2) + k % 2)
            top, total = self._join_stats(stats + column * 16, 16 * padded)
            factor = result.normalized((maxima[k] - top).exp2(), total)
            with ptx_sync.when(column < valid):
                row = outputs + (warp * self.width + column) * (per_column * 4) + self.g * (4 * (h // 8 + 2))
                for block in range(self.blocks):
                    place = 4 * (block * self.eights + k // 2) + k % 2
                    pair = [values[place], values[place + 2]]
                    if self.quantized:
                        pair = [v + offsets[k] for v in pair]
                    ptx.store_shared(row + 8 * block, *[(v * factor).value for v in pair])
                with ptx_sync.when(ptx_sync.equal(warp * 8 + self.g, 0)):
                    result.store_stats(column, top, total)
        ptx_sync.sync_warpgroup(barrier)
        thread = warp * 32 + self.lane
        for start in range(0, self.width * h // 2, 128):
            pair = thread + start
            with ptx_sync.when(pair < valid * (h // 2)):
                column, place = pair // (h // 2), pair % (h // 2) * 2
                address = outputs + column * (per_column * 4) + place * 4 + place // (h // 8) * 8
                low = high = Float(0.0)
                for i in range(4):
                    words = ptx.load_shared(address + i * (self.width * per_column * 4), 2)
                    low, high = (x + Float(ptx.as_float(w)) for x, w in zip((low, high), words, strict=True))
                result.store_pair(pair, low, high)

    @staticmethod
    def _join_stats(address: Int, stride: int) -> tuple[Float, Float]:
        """Maximum and sum of a column over the four warps."""
        pairs = [floats([ptx.as_float(w) for w in ptx.load_shared(address + i * stride, 2)]) for i in range(4)]
        top = functools.reduce(Float.max, [maximum for maximum, _ in pairs])
        total = Float(0.0)
        for maximum, part in pairs:
            total = part.fma((maximum - top).exp2(), total)
        return top, total
