"""Export undoes loading, bit for bit. (For int4 see test_loader.)"""

import numpy as np
import pytest
from support.checkpoint_edits import assert_same_tensors
from support.tiny_checkpoints import CASES, tensors, write_checkpoint

from jaxdeploy.weights.checkpoint import open_checkpoint
from jaxdeploy.weights.hf_export import hf_tensors
from jaxdeploy.weights.loader import load_parameters


@pytest.mark.parametrize("case", CASES)
def test_export_is_the_inverse(case, tmp_path):
    checkpoint = open_checkpoint(write_checkpoint(case, tmp_path, dtype=np.float16))
    exported = dict(hf_tensors(load_parameters(checkpoint, None), checkpoint.config, checkpoint.layout))
    expected = {name: value.astype(np.float16) for name, value in tensors(case).items()}
    assert_same_tensors(exported, expected)
