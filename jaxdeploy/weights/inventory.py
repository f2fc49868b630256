"""Which tensors a model is made of, against those that a checkpoint has."""

import re
from collections.abc import Iterable

import numpy as np

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.family_names import own_name
from jaxdeploy.weights.int4_layouts import Int4Layout
from jaxdeploy.weights.leaf import LeafPlan
from jaxdeploy.weights.tensor_source import TensorSource

# Buffers that old versions of the model code saved; all are computed from the configuration.
_BUFFERS = re.compile(r"\.rotary_emb\.|\.masked_bias$")
_INT4 = (".qweight", ".weight_packed")
_SHOWN = 5


def check_tensors(
    config: ModelConfig, source: TensorSource, plans: Iterable[LeafPlan], layout: Int4Layout | None
) -> tuple[list[str], list[str]]:
    """Match the tensors that the leaves need with those that are there.

    Returns:
        (names of the tensors needed, names of harmless ones left over). Harmless are buffers that the configuration
        determines, a head beside tied embeddings (the tie wins, as in Hugging Face), and biases of zeros that some quantizers
        add to int4 modules that have none.

    Raises:
        CheckpointError: a tensor is missing, or one has no place in the model.
    """
    wanted: dict[str, None] = {}
    int4_modules: set[str] = set()
    for plan in plans:
        for layer in range(plan.layers):
            for module in plan.modules(layer):
                wanted.update(dict.fromkeys(plan.tensor_names(module, layout)))
                if plan.is_int4:
                    int4_modules.add(module.name)
    found = source.names()
    _check_missing(config, source, wanted.keys() - set(found))
    harmless, unknown = [], []
    for name in found:
        if name in wanted:
            continue
        module, _, tensor = name.rpartition(".")
        if (
            _BUFFERS.search(name)
            or (config.tie_word_embeddings and module == own_name(config.family, "lm_head"))
            or (tensor == "bias" and module in int4_modules and not np.any(source.read(name)))
        ):
            harmless.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{source.info(unknown[0]).file}: {_list(unknown)} has no place in a {config.family} model with "
            f"{config.num_layers} layers, qkv_bias={config.qkv_bias}, o_bias={config.o_bias}, mlp_bias={config.mlp_bias}; "
            "does config.json belong to these weights?"
        )
    return list(wanted), harmless


def _check_missing(config: ModelConfig, source: TensorSource, missing: set[str]) -> None:
    if not missing:
        return
    found = source.names()
    where = source.info(found[0]).file.parent if found else "the checkpoint"
    message = f"{where}: tensor {_list(sorted(missing))} is missing; {len(found)} others were found"
    if missing == {f"{own_name(config.family, 'lm_head')}.weight"}:
        message += ". If the head shares the embedding's weights, config.json must say tie_word_embeddings: true"
    elif config.quantization is None and any(name.endswith(_INT4) for name in found):
        message += ". The weights are int4, but config.json has no quantization_config"
    raise CheckpointError(message)


def _list(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {rest} more" if rest > 0 else "")
