"""Keeps what a step allocates at the same addresses from step to step.

XLA launches a step as one CUDA graph and updates every kernel of it whose arguments have moved since: 0.3 to 2.5 ms of the host for
some 300 kernels of which most use the one buffer of temporaries (H100, jax 0.11.2, ``TF_CPP_VMODULE=command_buffer_thunk=3``). Its
allocator takes the smallest free chunk that is large enough. Where free memory is one piece, a few bytes of a step's inputs or of
its tokens are cut off that piece and move what is allocated next. So small allocations get chunks of their own.
"""

from typing import Any

import jax
import numpy as np

SIZES = tuple(2**power for power in range(8, 19))
"""Bytes of the chunks: from the allocator's smallest."""
OF_EACH = 8
"""Free chunks of each size: inputs, tokens and temporaries of the steps that are under way."""


def keep_small_chunks_apart(device: Any) -> list[jax.Array]:
    """Leave small free chunks in the device's memory; they stay apart while the arrays returned, which lie between them, live."""
    kept, freed = [], []
    for size in SIZES:
        for _ in range(OF_EACH):
            freed.append(jax.device_put(np.zeros(size, np.uint8), device))
            kept.append(jax.device_put(np.zeros(size, np.uint8), device))
    jax.block_until_ready((kept, freed))
    return kept
