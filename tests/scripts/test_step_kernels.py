"""The list of a step's kernels is read from an optimized module."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from step_kernels import kernels

MODULE = """HloModule jit_step
%fused (p: f32[4]) -> f32[4] {
  ROOT %add.9 = f32[4]{0} add(%p, %p)
}

ENTRY %main.5 (x: f32[4], w: s32[1]) -> (f32[4]) {
  %x.1 = f32[4]{0} parameter(0), metadata={op_name="x"}
  %constant_3 = s32[1]{0} constant({1})
  %loop_add_fusion.12 = f32[4]{0} fusion(%x.1), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/add"}
  %loop_add_fusion.remat3 = f32[4]{0} fusion(%x.1), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/add"}
  %mpmd_map.7 = (f32[4]{0}, f32[4]{0}) custom-call(%x.1), metadata={op_name="a/kv_write/mpmd_map"}
  %get-tuple-element.1 = f32[4]{0} get-tuple-element(%mpmd_map.7), index=0
  ROOT %tuple.2 = (f32[4]{0}) tuple(%get-tuple-element.1)
}
"""


def test_kernels_are_counted_by_what_they_are():
    assert dict(kernels(MODULE)) == {"loop_add_fusion": 2, "kv_write": 1}
