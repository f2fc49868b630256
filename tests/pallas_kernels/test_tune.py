"""The command that tunes: it knows every kernel's sweep by name."""

import jax
import pytest

from pallas_kernels import tune


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="says what happens without a GPU")
@pytest.mark.parametrize("kernel", tune.KERNELS)
def test_tuning_without_a_gpu_says_so(kernel, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tune", kernel])
    assert tune.main() == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_an_unknown_kernel_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tune", "softmax"])
    with pytest.raises(SystemExit):
        tune.main()
    assert "invalid choice: 'softmax'" in capsys.readouterr().err
