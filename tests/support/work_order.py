"""What pytest-xdist's workers get, and when: whole files, the longest first, so that none waits alone for one at the end."""

from xdist.scheduler import LoadFileScheduling

LONGEST = (
    "tests/serve/live/",
    "tests/jaxdeploy/test_demo_model.py",
    "tests/jaxdeploy/lite/test_quantize.py",
    "tests/jaxdeploy/test_pipeline.py",
    "tests/jaxdeploy/test_kv_rotation.py",
    "tests/pallas_kernels/test_lowering.py",
    "tests/scripts/test_soak_engine.py",
    "tests/jaxdeploy/engine/test_speculation.py",
    "tests/pallas_kernels/test_attention_lowering.py",
    "tests/jaxdeploy/engine/test_engine.py",
    "tests/jaxdeploy/model/test_parity.py",
    "tests/scripts/test_bench_engine.py",
    "tests/jaxdeploy/cli/test_compile.py",
    "tests/jaxdeploy/lite/test_awq.py",
    "tests/scripts/test_convert_hf.py",
    "tests/jaxdeploy/engine/test_prefix_caching.py",
    "tests/jaxdeploy/engine/test_program_cache.py",
    "tests/jaxdeploy/engine/test_memory.py",
    "tests/serve/test_tutorial.py",
    "tests/scripts/test_bench_quantize.py",
)
"""Files by the time that they take. A folder goes to one worker as a whole: its files share a server, which takes long to start."""


def place_in_order(nodeid: str) -> int:
    """Sort key of a test: where its file stands in LONGEST, or behind all of them."""
    return next((place for place, path in enumerate(LONGEST) if nodeid.startswith(path)), len(LONGEST))


class LongestFirst(LoadFileScheduling):
    """As ``--dist=loadfile``, in the order in which tests were collected; those of a folder in LONGEST stay together."""

    def __init__(self, config, log=None):
        super().__init__(config, log)
        config.option.loadscopereorder = False  # by number of tests: a file with one long test came last

    def _split_scope(self, nodeid: str) -> str:
        place = place_in_order(nodeid)
        return LONGEST[place] if place < len(LONGEST) else super()._split_scope(nodeid)
