"""How a checkpoint's linear layers are packed: the ``quantization_config`` of its ``config.json``."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxdeploy.errors import ConfigError

METHODS = ("awq", "gptq", "compressed-tensors")
GPTQ_FORMATS = ("gptq", "gptq_v2")
_REGEX = "re:"  # compressed-tensors' mark of a regular expression in a list of module names


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """Int4 weights with one scale (and zero point) per output and group of inputs; activations stay float.

    Attributes:
        method: the layout's family: awq (gemm), gptq or compressed-tensors (pack-quantized).
        bits: always 4.
        group_size: inputs that share a scale, even; -1 = all inputs of an output.
        zero_point: zero points differ from 8 (asymmetric).
        desc_act: columns are in act-order: modules carry ``g_idx``.
        gptq_v2: GPTQ zero points are stored as they are, not less one.
        modules_to_not_convert: names of modules that stay float, ``re:`` in front of a regular expression.
        raw: the section as JSON, to write the checkpoint back as it was.
    """

    method: str
    group_size: int
    zero_point: bool
    bits: int = 4
    desc_act: bool = False
    gptq_v2: bool = False
    modules_to_not_convert: tuple[str, ...] = ()
    raw: str = "{}"

    @classmethod
    def from_hf(cls, section: Mapping[str, Any]) -> "QuantizationConfig":
        """Reads the ``quantization_config`` of a Hugging Face ``config.json``.

        Raises:
            ConfigError: unsupported method, version, bits or scheme; the message names the key, the value and what is
                supported.
        """
        if not isinstance(section, Mapping):
            raise ConfigError(f"quantization_config={section!r} must be an object with a quant_method")
        method = str(section.get("quant_method")).lower()
        if method not in METHODS:
            raise _unsupported("quant_method", section.get("quant_method"), METHODS)
        match method:
            case "awq":
                return _awq(section)
            case "gptq":
                return _gptq(section)
        return _compressed_tensors(section)

    def to_hf(self) -> dict[str, Any]:
        """The section as it was read."""
        return json.loads(self.raw)

    def stays_float(self, module_name: str) -> bool:
        """True if ``module_name`` is in ``modules_to_not_convert``.

        An entry names a module by its whole name, by one or more whole parts of it (``lm_head``, ``mlp.gate``), or by
        a regular expression that matches from the start of the name.
        """
        for entry in self.modules_to_not_convert:
            if entry.startswith(_REGEX):
                if re.match(entry.removeprefix(_REGEX), module_name):
                    return True
            elif f".{entry}." in f".{module_name}.":
                return True
        return False


def _awq(section: Mapping[str, Any]) -> QuantizationConfig:
    version = section.get("version", "gemm")
    if str(version).lower() != "gemm":
        raise _unsupported("version", version, ("gemm",))
    if section.get("zero_point", True) is not True:
        raise _unsupported("zero_point", section["zero_point"], (True,))
    _check_bits(section.get("bits", section.get("w_bit")), "bits")
    return QuantizationConfig(
        method="awq",
        group_size=_group_size(section.get("group_size", section.get("q_group_size"))),
        zero_point=True,
        modules_to_not_convert=_names(section, "modules_to_not_convert"),
        raw=json.dumps(section),
    )


def _gptq(section: Mapping[str, Any]) -> QuantizationConfig:
    checkpoint_format = section.get("checkpoint_format") or section.get("format") or "gptq"
    if checkpoint_format not in GPTQ_FORMATS:
        raise _unsupported("checkpoint_format", checkpoint_format, GPTQ_FORMATS)
    for key in ("is_marlin_format", "lm_head"):
        if section.get(key):
            raise _unsupported(key, section[key], (False,))
    _check_bits(section.get("bits"), "bits")
    return QuantizationConfig(
        method="gptq",
        group_size=_group_size(section.get("group_size")),
        zero_point=not _flag(section, "sym", True),
        desc_act=_flag(section, "desc_act", False),
        gptq_v2=checkpoint_format == "gptq_v2",
        modules_to_not_convert=_names(section, "modules_to_not_convert") + _gptq_skipped(section),
        raw=json.dumps(section),
    )


def _gptq_skipped(section: Mapping[str, Any]) -> tuple[str, ...]:
    """GPTQModel's ``dynamic``: ``-:regex`` leaves modules float, anything else gives them settings of their own."""
    skipped = []
    for key, settings in (section.get("dynamic") or {}).items():
        if not key.startswith("-:"):
            raise ConfigError(
                f"quantization_config.dynamic[{key!r}]={settings!r} is not supported: all quantized modules must have "
                "the same settings; only '-:' entries, which leave modules float, are read"
            )
        skipped.append(_REGEX + key.removeprefix("-:"))
    return tuple(skipped)


def _compressed_tensors(section: Mapping[str, Any]) -> QuantizationConfig:
    for key in ("sparsity_config", "transform_config", "kv_cache_scheme"):
        value = section.get(key)
        if value and not (key == "sparsity_config" and value.get("format") == "dense"):
            raise _unsupported(key, value, (None,))
    groups = section.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise ConfigError(f"quantization_config.config_groups={groups!r} must be an object with at least one group")
    schemes = set()
    for name, group in groups.items():
        where = f"config_groups.{name}"
        format_ = group.get("format") or section.get("format")
        if format_ != "pack-quantized":
            raise _unsupported(f"{where}.format" if group.get("format") else "format", format_, ("pack-quantized",))
        for activations in ("input_activations", "output_activations"):
            if group.get(activations):
                raise _unsupported(f"{where}.{activations}", group[activations], (None,))
        schemes.add(_weight_scheme(group.get("weights"), f"{where}.weights"))
    if len(schemes) > 1:
        raise ConfigError(
            f"quantization_config.config_groups holds {len(schemes)} different weight schemes; all quantized modules "
            "must have the same group_size, symmetric and actorder"
        )
    group_size, zero_point, desc_act = schemes.pop()
    return QuantizationConfig(
        method="compressed-tensors",
        group_size=group_size,
        zero_point=zero_point,
        desc_act=desc_act,
        modules_to_not_convert=_names(section, "ignore"),
        raw=json.dumps(section),
    )


def _weight_scheme(weights: object, where: str) -> tuple[int, bool, bool]:
    """(group size, has zero points, has g_idx)."""
    if not isinstance(weights, Mapping):
        raise ConfigError(f"quantization_config.{where}={weights!r} must be an object with num_bits: 4")
    _check_bits(weights.get("num_bits"), f"{where}.num_bits")
    if weights.get("type", "int") != "int":
        raise _unsupported(f"{where}.type", weights["type"], ("int",))
    if weights.get("dynamic"):
        raise _unsupported(f"{where}.dynamic", weights["dynamic"], (False,))
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "channel")
    if strategy not in ("group", "channel"):
        raise _unsupported(f"{where}.strategy", strategy, ("group", "channel"))
    group_size = _group_size(weights.get("group_size"), f"{where}.group_size") if strategy == "group" else -1
    actorder = weights.get("actorder")
    # "weight" and "static" reorder during calibration only; "group" (once written true) leaves its mark in g_idx.
    desc_act = actorder is True or str(actorder).lower() in ("group", "dynamic")
    return group_size, not _flag(weights, "symmetric", True), desc_act


def _check_bits(bits: object, key: str) -> None:
    if bits != 4:
        raise _unsupported(key, bits, (4,))


def _group_size(value: object, key: str = "group_size") -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not (value == -1 or (value > 0 and value % 2 == 0)):
        raise ConfigError(f"quantization_config.{key}={value!r} must be a positive even number, or -1 for no groups")
    return value


def _flag(section: Mapping[str, Any], key: str, default: bool) -> bool:
    value = section.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"quantization_config.{key}={value!r} must be true or false")
    return value


def _names(section: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = section.get(key) or []
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"quantization_config.{key}={value!r} must be a list of module names")
    return tuple(value)


def _unsupported(key: str, value: object, supported: tuple[object, ...]) -> ConfigError:
    return ConfigError(
        f"quantization_config.{key}={value!r} is not supported; supported: {', '.join(map(repr, supported))}"
    )
