"""Counting operations and bytes of compiled programs."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from quantize_programs import operations, traffic

HLO = """HloModule jit_f

%fused_slice (param_0.1: f32[100,8], param_1.1: s32[]) -> f32[1,8] {
  %param_0.1 = f32[100,8]{1,0} parameter(0)
  %param_1.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  ROOT %slice.1 = f32[1,8]{1,0} dynamic-slice(%param_0.1, %param_1.1, %zero.1), dynamic_slice_sizes={1,8}
}

%body.1 (arg.1: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %arg.1 = (s32[], f32[100,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %x.1 = f32[100,8]{1,0} get-tuple-element(%arg.1), index=1
  %row.1 = f32[1,8]{1,0} fusion(%x.1, %i.1), kind=kLoop, calls=%fused_slice
  ROOT %tuple.1 = (s32[], f32[100,8]{1,0}) tuple(%i.1, %x.1)
}

ENTRY %main.2 (a.1: bf16[100,8], t.1: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %a.1 = bf16[100,8]{1,0} parameter(0)
  %t.1 = (s32[], f32[100,8]{1,0}) parameter(1)
  %copy.1 = bf16[100,8]{1,0} copy(%a.1)
  ROOT %while.1 = (s32[], f32[100,8]{1,0}) while(%t.1), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_a_loop_counts_every_turn_and_a_slice_what_it_takes():
    assert traffic(HLO) == (2 * 1600 + 5 * (32 + 4 + 32), 1 + 5 * 2)


def test_operations_by_arithmetic():
    def f(x, w):
        narrow = jax.lax.map(lambda row: row[None].astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), x)
        return narrow, jnp.matmul(x, w), jnp.matmul(x, w, precision="highest"), jnp.linalg.cholesky(w)

    counted = operations(jax.make_jaxpr(f)(jnp.ones((3, 4)), jnp.ones((4, 4))).jaxpr)
    assert counted == {"bfloat16": 2 * 3 * 16, "TF32": 2 * 3 * 16, "float32": 2 * 3 * 16 + 64 // 3}
