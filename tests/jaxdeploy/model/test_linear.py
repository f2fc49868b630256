import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.config.quantization import QuantizationConfig
from jaxdeploy.errors import ConfigError
from jaxdeploy.model.linear import StackedLinear, linear
from jaxdeploy.weights.quant_tensor import QuantTensor

LAYERS, K, N, G = 3, 64, 24, 32

CONFIG = ModelConfig.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": K,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
)
AWQ = QuantizationConfig("awq", group_size=G, zero_point=True)

jitted_linear = jax.jit(linear)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def quantized(perm: np.ndarray | None) -> QuantTensor:
    packed = jnp.asarray(rng().integers(0, 256, (LAYERS, N, K // 2)), jnp.uint8)
    scale = jnp.asarray(rng().uniform(0.01, 0.1, (LAYERS, K // G, N)), jnp.float32)
    zero = jnp.asarray(rng().integers(0, 16, (LAYERS, K // G, N)), jnp.uint8)
    return QuantTensor(packed, scale, zero, None if perm is None else jnp.asarray(perm, jnp.int32), group_size=G)


def project(config: ModelConfig, *, bias: bool = False, module: str = "q_proj", dtype: str = "float32"):
    return StackedLinear(config, (module,), K, N, ("heads", "embed"), bias, dtype)


@pytest.mark.parametrize(("shape", "rows"), [((1, K), 2), ((K,), 2), ((1, 1, K), 2), ((2, K), 2), ((5, K), 5)], ids=str)
def test_one_dense_token_is_a_matmul_of_two_on_a_gpu(shape, rows):
    x, weight = jax.ShapeDtypeStruct(shape, jnp.bfloat16), jax.ShapeDtypeStruct((LAYERS, N, K), jnp.bfloat16)
    traced = jax.jit(linear).trace(x, weight, jax.ShapeDtypeStruct((), jnp.int32))
    (product,) = re.findall(r"dot_general.*-> (\S+)", traced.lower(lowering_platforms=("cuda",)).as_text())
    assert product == f"tensor<{rows}x{N}xbf16>"
    assert traced.out_info.shape == (*shape[:-1], N)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_takes_the_layer_of_the_stack(dtype):
    x = jnp.asarray(rng().standard_normal((2, 5, K)), dtype)
    weight = jnp.asarray(rng().standard_normal((LAYERS, N, K)), dtype)
    for layer in range(LAYERS):
        out = jitted_linear(x, weight, jnp.int32(layer))
        assert out.dtype == dtype
        expected = np.asarray(x, np.float64) @ np.asarray(weight[layer], np.float64).T
        # Products add up in float32; only the result is rounded.
        np.testing.assert_allclose(
            np.asarray(out, np.float64), expected, rtol=1e-5 if dtype == "float32" else 2**-8 * 1.01, atol=1e-4
        )


def test_packed_equals_dense():
    x, weight = jnp.asarray(rng().standard_normal((5, K)), jnp.float32), quantized(None)
    for layer in range(LAYERS):
        packed = jitted_linear(x, weight, jnp.int32(layer))
        np.testing.assert_allclose(
            packed, jitted_linear(x, weight.dequantize(), jnp.int32(layer)), rtol=1e-5, atol=1e-5
        )


def test_act_order_permutes_each_layers_inputs():
    perm = np.stack([rng().permutation(K), np.arange(K)[::-1], np.arange(K)])
    x, weight = jnp.asarray(rng().standard_normal((5, K)), jnp.float32), quantized(perm)
    for layer in range(LAYERS):
        out = jitted_linear(x, weight, jnp.int32(layer))
        in_order = jitted_linear(x[:, perm[layer]], quantized(None), jnp.int32(layer))
        np.testing.assert_allclose(out, in_order, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out, jitted_linear(x, weight.dequantize(), jnp.int32(layer)), rtol=1e-5, atol=1e-5)


def test_bias_is_the_layers_own():
    x, bias = jnp.ones((1, K)), jnp.arange(LAYERS * N, dtype=jnp.float32).reshape(LAYERS, N)
    params = {"weight": jnp.zeros((LAYERS, N, K)), "bias": bias}
    for layer in range(LAYERS):
        out = project(CONFIG, bias=True).apply({"params": params}, x, jnp.int32(layer))
        np.testing.assert_array_equal(out, bias[layer][None])


def described(config: ModelConfig, module: str = "q_proj", dtype: str = "float32") -> dict:
    x, layer = jnp.ones((1, K), dtype), jnp.int32(0)
    return jax.eval_shape(
        lambda: project(config, bias=True, module=module, dtype=dtype).init(jax.random.key(0), x, layer)
    )["params"]


def test_parameters_of_a_dense_projection():
    params = described(CONFIG)
    assert params["weight"].source.axes == ("layer", "heads", "embed")
    assert params["bias"].source.axes == ("layer", "heads")
    assert (params["weight"].value.shape, params["bias"].value.shape) == ((LAYERS, N, K), (LAYERS, N))


@pytest.mark.parametrize(("group_size", "groups"), [(G, 2), (-1, 1)])
@pytest.mark.parametrize("desc_act", [False, True])
def test_parameters_of_a_quantized_projection(group_size, groups, desc_act):
    quantization = dataclasses.replace(AWQ, group_size=group_size, desc_act=desc_act)
    params = described(dataclasses.replace(CONFIG, quantization=quantization), dtype="bfloat16")
    weight, bias = params["weight"].value, params["bias"].value
    assert weight.packed == jax.ShapeDtypeStruct((LAYERS, N, K // 2), jnp.uint8)
    assert weight.scale == jax.ShapeDtypeStruct((LAYERS, groups, N), jnp.bfloat16)
    assert weight.zero == jax.ShapeDtypeStruct((LAYERS, groups, N), jnp.uint8)
    assert weight.group_size == K // groups
    assert weight.perm == (jax.ShapeDtypeStruct((LAYERS, K), jnp.int32) if desc_act else None)
    assert bias == jax.ShapeDtypeStruct((LAYERS, N), jnp.bfloat16)


def test_modules_that_stay_float():
    quantization = dataclasses.replace(AWQ, modules_to_not_convert=("o_proj",))
    config = dataclasses.replace(CONFIG, quantization=quantization)
    assert isinstance(described(config)["weight"].value, QuantTensor)
    assert described(config, "o_proj")["weight"].value.shape == (LAYERS, N, K)


def test_random_int4_weights_look_like_dense_ones():
    config = dataclasses.replace(CONFIG, quantization=AWQ)
    params = meta.unbox(project(config).init(jax.random.key(0), jnp.ones((1, K)), jnp.int32(0))["params"])
    w = np.asarray(params["weight"].dequantize())
    assert w.std() == pytest.approx(0.02, rel=0.05)
    assert abs(w.mean()) < 0.004


def test_group_size_must_divide_the_inputs():
    config = dataclasses.replace(CONFIG, quantization=dataclasses.replace(AWQ, group_size=48))
    with pytest.raises(ConfigError, match=r"64 inputs of \('q_proj',\) must be divisible by group_size=48"):
        described(config)
