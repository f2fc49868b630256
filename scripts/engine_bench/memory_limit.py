"""A part of the GPU's memory, as if it had no more."""

import os
import subprocess

MIB_PER_GIB = 1024


def limit_memory(gib: float) -> None:
    """Let JAX have so many GiB of the GPU; to be called before JAX looks for devices.

    Raises:
        ValueError: no NVIDIA GPU, or one with less memory.
    """
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        total = float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0])
    except (OSError, subprocess.CalledProcessError, IndexError) as problem:
        raise ValueError(f"{gib} GiB of which GPU? nvidia-smi finds none ({problem})") from None
    share = gib * MIB_PER_GIB / total
    if not 0 < share <= 1:
        raise ValueError(f"{gib} GiB must be above 0 and at most the GPU's {total / MIB_PER_GIB:.1f}")
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{share:.6f}"
