"""What a thread of the int4 matmul for few tokens does; ``mosaic_warp`` says how threads work together."""

from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir.dialects import arith

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.int4_matmul import nibbles
from pallas_kernels.int4_matmul.tiles import BLOCK, STRIP, TURN
from pallas_kernels.int4_matmul.warp_cut import TILE_BYTES, WarpConfig, row_floats, stage_bytes
from pallas_kernels.rms_norm.mosaic import Row, norm_of_row

_TOKENS = 8


class WarpCode:
    """Writes the code of one thread; the fields are known when the kernel is compiled. ``eps`` is None without a norm."""

    def __init__(
        self,
        m,
        k,
        outputs,
        all_strips,
        blocks,
        groups,
        dtype,
        config: WarpConfig,
        gated: bool,
        eps: float | None = None,
    ):
        self.m, self.k, self.outputs, self.all_strips, self.blocks = m, k, outputs, all_strips, blocks
        self.groups, self.config, self.gated, self.eps = groups, config, gated, eps
        self.grid, self.rounds = config.grid(all_strips)
        self.token_tiles = -(-m // _TOKENS)
        self.rows = self.token_tiles * _TOKENS
        self.fetched = m if eps is None else 0  # tokens of x that come through the ring
        self.stage_bytes = stage_bytes(config.strips, groups, self.fetched)
        self.meta_bytes = groups * STRIP * 4
        self.steps = -(-blocks // config.warps)
        self.mma_dtype = ptx.SHORT_NAMES[dtype]
        self.ones = {"bf16": 0x3F803F80, "f16": 0x3C003C00}[self.mma_dtype]

    def emit(self, *refs) -> None:
        """The kernel; refs are those of x, words, meta, layer, out, ring; with a norm of x, delta, gain, words, meta, layer, sum,
        out, ring.
        """
        config = self.config
        addresses = [ptx.global_address(ref) for ref in refs[:-1]]
        if self.eps is None:
            self.x, words, meta, layer, out = addresses
        else:
            self.x, delta, gain, words, meta, layer, total_out, out = addresses
        thread = ptx.thread_index()
        self.lane, self.warp = thread % 32, thread // 32
        self.block = ptx.block_index()
        ring = ptx.shared_address(refs[-1])
        self.zeros = ring + config.warps * config.stages * self.stage_bytes
        self.stage_0 = ring + self.warp * (config.stages * self.stage_bytes)
        exchange = ring if self.rounds == 1 else ring + config.ring_bytes(self.fetched, self.groups)
        self._clear_padding()
        number = ptx.load_global(layer).wide()
        self.words = words + number * (self.all_strips * self.blocks * TILE_BYTES)
        self.meta = meta + number * (self.all_strips * self.blocks * self.meta_bytes)
        ahead, total = config.stages - 1, self.rounds * self.steps
        for position in range(ahead):
            if position < total:
                self._fetch_weights(ptx.constant(position))
                self._fetch_x(ptx.constant(position))
            ptx.commit_group()
        if self.eps is not None:
            self.normed = ring + (config.shared_bytes(self.m, self.groups, self.rounds, self.k) - self._normed_bytes())
            self._normalize(self.eps, thread, delta, gain + number * (2 * self.k), total_out)
        zero = utils.c(0.0, ptx.f32())

        def tile(turn: ptx.Int, _):
            def step(i: ptx.Int, accumulators):
                position = turn * self.steps + i
                ptx.wait_group(ahead - 1)
                ptx.sync_warp()
                with utils.when(position + ahead < total):
                    self._fetch_weights(position + ahead)
                    self._fetch_x(position + ahead)
                ptx.commit_group()
                return self._multiply(position, accumulators)

            accumulators = ptx.repeat(self.steps, [zero] * (config.strips * self.token_tiles * 4), step)
            # Every warp has read what the exchange is about to overwrite: the ring, or the tile before.
            ptx.sync_block()
            self._exchange(exchange, accumulators)
            ptx.sync_block()
            self._write(exchange, thread, self._first_strip(turn), out)
            return []

        if self.rounds == 1:
            tile(ptx.constant(0), [])
        else:
            ptx.repeat(self.rounds, [], tile)

    def _first_strip(self, turn: ptx.Int) -> ptx.Int:
        return (turn * self.grid + self.block) * self.config.strips

    def _stage(self, position: ptx.Int) -> ptx.Int:
        return self.stage_0 + (position % self.config.stages) * self.stage_bytes

    def _input_block(self, position: ptx.Int) -> ptx.Int:
        """This warp's 128 inputs at a position of its walk; may lie past the last."""
        return position % self.steps * self.config.warps + self.warp

    def _x_at(self, position: ptx.Int) -> ptx.Int:
        """Shared memory of this warp's 128 inputs of all tokens; past the last input block any that are finite."""
        if self.eps is None:
            return self._stage(position) + self.config.strips * (TILE_BYTES + self.meta_bytes)
        block = self._input_block(position)
        if self.blocks % self.config.warps:
            block = ptx_sync.minimum(block, self.blocks - 1)
        return self.normed + block * (self.m * BLOCK * 2)

    def _normed_bytes(self) -> int:
        return self.m * (self.k * 2 + self.config.warps * 4)

    def _normalize(self, eps: float, thread: ptx.Int, delta: ptx.Int, gain: ptx.Int, total_out: ptx.Int) -> None:
        """Put the norm of x + delta into shared memory, as ``_fetch_x`` does; one block writes the sum out."""
        row = Row(self.k, self.config.warps * 32)
        sums = self.normed + self.m * self.k * 2
        for token in range(self.m):
            at = token * self.k * 2
            found = norm_of_row(
                row,
                self.mma_dtype,
                eps,
                thread,
                self.x + at,
                delta + at,
                gain,
                sums + token * self.config.warps * 4,
            )
            for (piece, inside), added, scaled in zip(*found, strict=True):
                target = self.normed + (piece // 16 * self.m + token) * (BLOCK * 2) + (piece % 16 ^ (token % 8)) * 16
                here = ptx_sync.equal(self.block, 0)
                with ptx_sync.when(here if inside is None else ptx_sync.both(here, inside)):
                    ptx_sync.store_global(total_out + at + piece.wide() * 16, *added)
                if inside is None:
                    ptx.store_shared(target, *scaled)
                else:
                    with ptx_sync.when(inside):
                        ptx.store_shared(target, *scaled)
        ptx.sync_block()

    def _clear_padding(self) -> None:
        """A row of zeros stands for the tokens that x doesn't have. All warps write the same zeros; a warp reads after its own."""
        zero = ptx.constant(0)
        if self.m < self.rows:
            ptx.store_shared(self.zeros + self.lane * 8, zero, zero)

    def _fetch_weights(self, position: ptx.Int) -> None:
        """Start the copies of this warp's tiles; past the last input block or strip, zeros."""
        config = self.config
        block, stage = self._input_block(position), self._stage(position)
        first_strip = self._first_strip(position // self.steps)
        whole = self.blocks % config.warps == 0
        all_whole = self.all_strips == config.strips * self.grid * self.rounds
        for strip in range(config.strips):
            number = first_strip + strip
            inside = None
            if not whole:
                inside = block < self.blocks
            if not all_whole:
                in_strips = number < self.all_strips
                inside = in_strips if inside is None else arith.andi(inside, in_strips)
            size = None if inside is None else ptx.constant(16).select(inside, 0)
            tile = number * self.blocks + block
            if inside is not None:
                tile = tile.select(inside, 0)
            source = self.words + tile.wide() * TILE_BYTES + (self.lane * 16).wide()
            target = stage + (self.lane * 16 + strip * TILE_BYTES)
            ptx.copy_async(target, source, size)
            ptx.copy_async(target + 512, source + 512, size)
            with utils.when(self.lane < self.meta_bytes // 16):
                ptx.copy_async(
                    stage + (self.lane * 16 + config.strips * TILE_BYTES + strip * self.meta_bytes),
                    self.meta + tile.wide() * self.meta_bytes + (self.lane * 16).wide(),
                    size,
                )

    def _fetch_x(self, position: ptx.Int) -> None:
        """Start the copies of 128 inputs of all tokens: rows of 256 bytes, pieces exchanged by row for ldmatrix's sake (banks)."""
        if self.eps is not None:
            return
        block = self._input_block(position)
        base = self._x_at(position)
        pieces = self.m * (BLOCK // 8)
        exact = self.blocks % self.config.warps == 0 and self.k % BLOCK == 0
        for i in range(-(-pieces // 32)):
            index = self.lane + 32 * i
            row, piece = index // 16, index % 16
            column = block * BLOCK + piece * 8
            source = self.x + (row * self.k + column).wide() * 2
            size = None
            if not exact:
                inside = column < self.k
                size = ptx.constant(16).select(inside, 0)
                source = ptx.Int(arith.select(inside, source.value, self.x.value))
            target = base + (row * (BLOCK * 2) + (piece ^ (row % 8)) * 16)
            if 32 * (i + 1) <= pieces:
                ptx.copy_async(target, source, size)
            else:
                with utils.when(index < pieces):
                    ptx.copy_async(target, source, size)

    def _multiply(self, position: ptx.Int, accumulators: list) -> list:
        """One tile of every strip times x."""
        config, lane = self.config, self.lane
        zero = utils.c(0.0, ptx.f32())
        stage, x_base = self._stage(position), self._x_at(position)
        row, matrix = lane % 8, lane // 8
        operands = []  # [token tile][step of 16 inputs]: two registers
        for tile in range(self.token_tiles):
            steps = []
            for pair in range(BLOCK // 32):
                piece = (matrix + 4 * pair) ^ row
                start = x_base + (row + tile * _TOKENS) * (BLOCK * 2)
                if (tile + 1) * _TOKENS > self.m:
                    start = start.select(row < self.m - tile * _TOKENS, self.zeros)
                found = ptx.load_matrices(start + piece * 16)
                steps += [found[:2], found[2:]]
            operands.append(steps)
        ones = [ptx.constant(self.ones)] * 4
        per_group = 8 // self.groups
        sums = []  # [group][token tile]
        for group in range(self.groups):
            row_sums = []
            for tile in range(self.token_tiles):
                total = [zero] * 4
                for s in range(group * per_group, (group + 1) * per_group):
                    total = ptx.mma(ones, operands[tile][s], total, self.mma_dtype)
                row_sums.append(total)
            sums.append(row_sums)
        new = list(accumulators)
        for strip in range(config.strips):
            tile_words = stage + (lane * 16 + strip * TILE_BYTES)
            words = ptx.load_shared(tile_words, 4) + ptx.load_shared(tile_words + 512, 4)
            meta = stage + ((lane // 4) * 4 + config.strips * TILE_BYTES + strip * self.meta_bytes)
            for group in range(self.groups):
                scales, zeros = [], []
                for half in range(2):
                    [word] = ptx.load_shared(meta + (group * STRIP * 4 + half * 32))
                    scales.append(nibbles.scale(word))
                    # 2^23 + zero as float32, less 2^23 - bias: minus (bias + zero), exactly.
                    number = ptx.as_float(ptx.and_or(word, 0xF, 0x4B000000))
                    zeros.append(arith.subf(utils.c(8388608.0 - nibbles.BIAS[self.mma_dtype], ptx.f32()), number))
                products = [[zero] * 4 for _ in range(self.token_tiles)]
                for s in range(group * per_group, (group + 1) * per_group):
                    a = [nibbles.biased_pair(words[s], i, self.mma_dtype) for i in range(4)]
                    for tile in range(self.token_tiles):
                        products[tile] = ptx.mma(a, operands[tile][s], products[tile], self.mma_dtype)
                for tile in range(self.token_tiles):
                    at = (strip * self.token_tiles + tile) * 4
                    for j in range(4):
                        exact = ptx.fma(zeros[j // 2], sums[group][tile][j], products[tile][j])
                        new[at + j] = ptx.fma(scales[j // 2], exact, new[at + j])
        return new

    def _exchange(self, ring: ptx.Int, accumulators: list) -> None:
        """Put this warp's accumulators into [warp][token][output]."""
        width = row_floats(self.config.strips)
        for strip in range(self.config.strips):
            for tile in range(self.token_tiles):
                for j in range(4):
                    token = (self.lane % 4) * 2 + (tile * _TOKENS + j % 2)
                    row = self.warp * self.m + token
                    place = row * width + (self.lane // 4 + (strip * STRIP + j // 2 * 8))
                    value = accumulators[(strip * self.token_tiles + tile) * 4 + j]
                    if (tile + 1) * _TOKENS <= self.m:
                        ptx.store_shared(ring + place * 4, value)
                    else:
                        with utils.when(token < self.m):
                            ptx.store_shared(ring + place * 4, value)

    def _write(self, ring: ptx.Int, thread: ptx.Int, first_strip: ptx.Int, out: ptx.Int) -> None:
        """Add up the warps and apply the gate; two neighbouring outputs a thread."""
        config, row = self.config, row_floats(self.config.strips)
        threads, width = config.warps * 32, self.outputs // (1 + self.gated)
        pairs = config.strips * STRIP // 2 // (1 + self.gated)
        total = self.m * pairs
        for i in range(-(-total // threads)):
            index = thread + i * threads
            token, pair = index // pairs, index % pairs
            column = first_strip * (STRIP // (1 + self.gated)) + pair * 2
            inside = column < width
            if (i + 1) * threads > total:
                inside = arith.andi(inside, index < total)
            with utils.when(inside):
                # Of a gated strip the gate's 8 columns come first.
                at = pair // 4 * STRIP + pair % 4 * 2 if self.gated else pair * 2
                values = self._sum_of_warps(ring + (token * row + at) * 4)
                if self.gated:
                    ups = self._sum_of_warps(ring + (token * row + at + TURN) * 4)
                    values = [arith.mulf(ptx.silu(gate), up) for gate, up in zip(values, ups, strict=True)]
                address = out + (token * width + column).wide() * 2
                ptx.asm("st.global.b32 [$0], $1;", address, ptx.pack_pair(values[0], values[1], self.mma_dtype))

    def _sum_of_warps(self, place: ptx.Int) -> list:
        totals = None
        for warp in range(self.config.warps):
            bits = ptx.load_shared(place + warp * (self.m * row_floats(self.config.strips) * 4), 2)
            values = [ptx.as_float(b) for b in bits]
            totals = values if totals is None else [arith.addf(t, v) for t, v in zip(totals, values, strict=True)]
        assert totals is not None
        return totals
