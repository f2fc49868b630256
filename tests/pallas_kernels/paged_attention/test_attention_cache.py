"""The oracle of the GPU tests agrees with the reference, which is tested against numpy."""

import pytest
from support.attention_cache import Cache, error, queries


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("options", [{}, {"window": 20}, {"soft_cap": 3.0}], ids=str)
def test_oracle_and_reference_agree(bits, options):
    cache = Cache([0, 1, 70, 16], kv_heads=2, head_dim=32, bits=bits, page=16)
    q = queries(4, 4, 32)
    # The output is bfloat16: half a unit in its last place is 2e-3.
    assert error(cache.decode(q, implementation="reference", **options), cache.oracle(q, **options)) < 3e-3
