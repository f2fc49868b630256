"""The list of a step's kernels is read from an optimized module."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import pytest
from step_kernels import kernels

MODULE = """HloModule jit_step
%fused (p: f32[4]) -> f32[4] {
  ROOT %add.9 = f32[4]{0} add(%p, %p)
}

%body.4 (p.1: (f32[4], s32[])) -> (f32[4], s32[]) {
  %loop_add_fusion.9 = f32[4]{0} fusion(%p.1), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/add"}
  %copy.2 = f32[4]{0} copy(%loop_add_fusion.9)
  ROOT %tuple.1 = (f32[4]{0}, s32[]) tuple(%copy.2, %loop_add_fusion.9)
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


def test_kernels_of_a_loop_count_as_often_as_it_turns():
    loop = "  %while.3 = (f32[4]{0}, s32[]) while(%x.1), condition=%c, body=%body.4, backend_config={KNOWN}"
    module = MODULE.replace("  ROOT %tuple.2", loop + "\n  ROOT %tuple.2")
    found = kernels(module.replace("KNOWN", '"known_trip_count":{"n":"32"}'))
    assert dict(found) == {"loop_add_fusion": 34, "kv_write": 1, "copy": 32}
    with pytest.raises(ValueError, match=r"a loop of unknown length: %while\.3"):
        kernels(module.replace("KNOWN", ""))
