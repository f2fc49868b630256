"""GPU kernels of jaxdeploy, one folder per operation. They know arrays only, nothing of tokens or models.

Each folder holds ``reference.py`` (jax.numpy: the contract, the CPU path, the fallback), ``api.py`` (checks shapes, chooses an
implementation) and ``cases.py`` (the real shapes, shared by tests, tuning and benchmarks).
"""
