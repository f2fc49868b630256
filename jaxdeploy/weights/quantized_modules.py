"""Which modules of an int4 checkpoint stay float, as its tensors tell."""

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.family_names import GATE_UP, LAYER_PREFIX, LINEAR_MODULES, QKV, own_name
from jaxdeploy.weights.int4_layouts import Int4Layout
from jaxdeploy.weights.tensor_source import TensorSource


def resolve_float_modules(config: ModelConfig, source: TensorSource, layout: Int4Layout) -> tuple[str, ...]:
    """The kinds of linear modules that are float in every layer, by their Hugging Face Llama names ("mlp.down_proj").

    The tensors decide; configurations name modules in the family's own way, by regular expressions, or not at all.
    What the configuration says counts only for a module that has no tensors, so that the loader can name what is missing.

    Raises:
        CheckpointError: no module is int4, or a module is float in some layers and int4 in others, or among modules that are joined
            (q, k, v or gate, up), which a stack of layers can't hold.
    """
    names = set(source.names())
    floats = {kind: _float_layers(config, kind, names, layout) for kind in LINEAR_MODULES}
    if all(all(layers) for layers in floats.values()):
        assert config.quantization is not None
        raise CheckpointError(
            f"config.json says quant_method {config.quantization.method!r}, but no module has a tensor "
            f"{layout.suffixes[0]!r}; remove quantization_config if the weights are float"
        )
    for kind, layers in floats.items():
        if any(layers) != all(layers):
            dense, packed = layers.index(True), layers.index(False)
            raise CheckpointError(
                f"{_own(config, kind, dense)} is float but {_own(config, kind, packed)} is int4; all layers must have the "
                "same modules quantized"
            )
    for joined in (QKV, GATE_UP):
        dense = [kind for kind in joined if floats[kind][0]]
        packed = [kind for kind in joined if not floats[kind][0]]
        if dense and packed:
            raise CheckpointError(
                f"{_own(config, dense[0], 0)} is float but {_own(config, packed[0], 0)} is int4; they are joined into one "
                "matrix and must be quantized alike"
            )
    return tuple(kind for kind in LINEAR_MODULES if floats[kind][0])


def _float_layers(config: ModelConfig, kind: str, names: set[str], layout: Int4Layout) -> list[bool]:
    return [_is_float(config, _own(config, kind, layer), names, layout) for layer in range(config.num_layers)]


def _is_float(config: ModelConfig, module: str, names: set[str], layout: Int4Layout) -> bool:
    dense, packed = f"{module}.weight" in names, f"{module}.{layout.suffixes[0]}" in names
    if dense != packed:
        return dense
    assert config.quantization is not None
    return config.quantization.stays_float(module)


def _own(config: ModelConfig, kind: str, layer: int) -> str:
    return own_name(config.family, f"{LAYER_PREFIX}{layer}.{kind}")
