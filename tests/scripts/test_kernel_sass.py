"""The summary of a kernel's SASS: read from saved text; from a real compilation where XLA's CUDA plugin and ptxas are installed."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from kernel_sass import TARGETS, instructions, summary, tool

SCRIPTS = Path(__file__).parents[2] / "scripts"
PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'f' for 'sm_90a'
ptxas info    : Function properties for f
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 16 barriers, 1 bytes smem
"""
SASS = """.text.f:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDS.128 R4, [R2] ;
        /*0020*/                   LDS R5, [R2] ;
        /*0030*/              @!P0 LDGSTS.E.BYPASS.128 [R3], desc[UR4][R6.64] ;
        /*0040*/             @!UP1 UTMALDG.4D [UR8], [UR6] ;
        /*0050*/                   HGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR4], R24, gsb0 ;
        /*10060*/                  HGMMA.64x64x16.F32.BF16 R24, R8, gdesc[UR4], R24, gsb0 ;
        /* 0x0000000000007918 */
"""


def test_instructions_are_counted_by_name_and_width():
    assert instructions(SASS) == Counter({"HGMMA": 2, "LDS.128": 1, "LDGSTS.128": 1, "UTMALDG": 1})


def test_registers_and_no_spills():
    found = summary(PTXAS, SASS)
    assert (found.registers, found.spills, found.good) == (168, 0, True)
    assert str(found) == "168 registers, 0 bytes spilled; HGMMA 2, UTMALDG 1, LDGSTS.128 1, LDS.128 1"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0 bytes spill stores", "16 bytes spill stores"),
        ("ptxas info    : 0 bytes gmem", "ptxas info    : (C7513) Potential Performance Loss: wgmma are serialized"),
    ],
)
def test_spills_and_serialized_wgmma_are_faults(old, new):
    found = summary(PTXAS.replace(old, new), SASS)
    assert not found.good
    assert "16 bytes spilled" in str(found) or "(C7513) Potential" in str(found)


def test_output_that_is_none_of_ptxas_is_named():
    with pytest.raises(ValueError, match="no registers: 'nothing'"):
        summary("nothing", SASS)


def test_targets_differ_in_what_they_can():
    text = TARGETS["a100"].description()
    assert "{ major: 8 minor: 0 }" in text
    assert "core_count: 108" in text
    assert "ACCELERATED" in TARGETS["h100"].description()


def missing() -> str | None:
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        return "XLA's CUDA plugin is not installed"
    try:
        tool("ptxas"), tool("nvdisasm")
    except FileNotFoundError as error:
        return str(error)
    return None


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.parametrize("target", TARGETS)
def test_the_warp_kernel_compiles_for_gpus_before_hopper_too(target):
    cut = ["--cut", "16x512x64", json.dumps({"strips": 2, "warps": 4, "stages": 2})]
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_gpu_cuda_data_dir={Path(tool('ptxas')).parents[1]}"}
    run = subprocess.run(
        [sys.executable, str(SCRIPTS / "kernel_sass.py"), *cut, "--target", target],
        env={**os.environ, **flags, "PYTHONPATH": os.pathsep.join([str(SCRIPTS.parent), str(SCRIPTS)])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "0 bytes spilled" in run.stdout
    assert "LDGSTS.128" in run.stdout
    assert "HMMA" in run.stdout
