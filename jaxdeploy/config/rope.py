"""How a checkpoint stretches rotary position embeddings (RoPE), read from a Hugging Face config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxdeploy.errors import ConfigError

KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope", "factors")
# Phi-3's first configs called LongRoPE "su".
_ALIASES = {"su": "longrope"}
DEFAULT_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """One RoPE variant with every number that it needs already resolved.

    Attributes:
        kind: one of ``KINDS``. ``factors`` is GGUF's form: frequency i of the plain RoPE is divided by ``factors[i]``.
        theta: base of the geometric series of frequencies.
        factor: how many times the context is stretched (linear, dynamic, yarn, llama3; informative for longrope).
        original_max_position: tokens of the context before stretching; dynamic and longrope switch above it.
        low_freq_factor, high_freq_factor: llama3's bands, as shares of ``original_max_position``.
        beta_fast, beta_slow: yarn's ramp, in rotations over ``original_max_position``.
        truncate: yarn rounds the ends of its ramp to whole dimensions.
        attention_factor: multiplies cos and sin; 1.0 where the kind has none.
        short_factor, long_factor: longrope's divisors, ``head_dim / 2`` numbers each.
        factors: explicit divisors, ``head_dim / 2`` numbers.
    """

    kind: str = "default"
    theta: float = DEFAULT_THETA
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"RoPE kind {self.kind!r} is not known; known kinds are {', '.join(KINDS)}")

    @property
    def depends_on_length(self) -> bool:
        """True if the frequencies depend on how many tokens the request can reach (no shared pages across that)."""
        return self.kind in ("dynamic", "longrope")

    @classmethod
    def from_hf(cls, cfg: Mapping[str, Any], head_dim: int) -> "RopeConfig":
        """Reads ``rope_parameters`` (transformers 5), or ``rope_scaling`` with ``rope_theta`` beside it.

        Args:
            cfg: the whole ``config.json``; ``max_position_embeddings`` is needed by dynamic, yarn and longrope.
            head_dim: size of one attention head, which fixes the length of factor lists.

        Raises:
            ConfigError: unknown kind, missing or non-positive field, list of a wrong length. The message names the key.
        """
        section = next((key for key in ("rope_parameters", "rope_scaling") if cfg.get(key)), "rope_scaling")
        params = cfg.get(section) or {}
        if not isinstance(params, Mapping):
            raise ConfigError(
                f"{section}={params!r} must be an object such as {{'rope_type': 'linear', 'factor': 2.0}}"
            )
        if params and all(isinstance(value, Mapping) for value in params.values()):
            raise ConfigError(
                f"{section} holds one RoPE per layer type ({', '.join(params)}); only one for all layers is supported"
            )
        return _Reader(cfg, params, section, head_dim).read()


@dataclass(frozen=True, slots=True)
class _Reader:
    """Typed access to one RoPE section; every error names the key and what is right."""

    cfg: Mapping[str, Any]
    params: Mapping[str, Any]
    section: str
    head_dim: int

    def read(self) -> RopeConfig:
        kind = self._kind()
        theta = self._theta()
        partial = self.params.get("partial_rotary_factor", self.cfg.get("partial_rotary_factor"))
        if partial is not None and partial != 1:
            raise ConfigError(
                f"partial_rotary_factor={partial!r} is not supported; every head dimension must rotate (1.0)"
            )
        match kind:
            case "linear":
                return RopeConfig(kind, theta, self._number("factor"))
            case "dynamic":
                # transformers and InternLM both measure the growth against max_position_embeddings itself.
                return RopeConfig(kind, theta, self._number("factor"), self._max_position())
            case "llama3":
                return self._llama3(theta)
            case "yarn":
                return self._yarn(theta)
            case "longrope":
                return self._longrope(theta)
            case "factors":
                return RopeConfig(kind, theta, factors=self._list("factors"))
        return RopeConfig(theta=theta)

    def _kind(self) -> str:
        key = "rope_type" if self.params.get("rope_type") is not None else "type"
        raw = self.params.get(key)
        if raw is None:
            # A bare {"factor": 2.0} does not say what to do with the factor; {"rope_theta": 1e6} alone is plain RoPE.
            if "factor" in self.params:
                raise ConfigError(f"{self.section} has a factor but no rope_type; give one of {', '.join(KINDS)}")
            return "default"
        kind = _ALIASES.get(raw, raw) if isinstance(raw, str) else None
        if kind not in KINDS:
            raise ConfigError(f"{self.section}.{key}={raw!r} is not known; known kinds are {', '.join(KINDS)}")
        return kind

    def _theta(self) -> float:
        inside = self.params.get("rope_theta") is not None
        name = f"{self.section}.rope_theta" if inside else "rope_theta"
        theta = self.params["rope_theta"] if inside else self.cfg.get("rope_theta")
        theta = DEFAULT_THETA if theta is None else _positive(theta, name)
        if theta <= 1:
            raise ConfigError(f"{name}={theta} must be above 1; {DEFAULT_THETA:g} is common")
        return theta

    def _llama3(self, theta: float) -> RopeConfig:
        low, high = self._number("low_freq_factor"), self._number("high_freq_factor")
        if high <= low:
            raise ConfigError(f"{self.section}.high_freq_factor={high} must be above low_freq_factor={low}")
        if self._stated_original() is None:
            raise ConfigError(f"{self.section}.original_max_position_embeddings is missing; llama3 RoPE needs it")
        return RopeConfig(
            "llama3", theta, self._number("factor"), self._original(), low_freq_factor=low, high_freq_factor=high
        )

    def _yarn(self, theta: float) -> RopeConfig:
        factor, original = self._stretch(), self._original()
        attention = self._optional("attention_factor")
        if attention is None:
            mscale, mscale_all = self.params.get("mscale"), self.params.get("mscale_all_dim")
            # DeepSeek writes mscale = 0 for "not used", hence the truth test rather than a None test.
            if mscale and mscale_all:
                attention = _yarn_mscale(factor, self._number("mscale")) / _yarn_mscale(
                    factor, self._number("mscale_all_dim")
                )
            else:
                attention = _yarn_mscale(factor, 1.0)
        beta_fast = self._optional("beta_fast") or 32.0
        beta_slow = self._optional("beta_slow") or 1.0
        if beta_fast < beta_slow:
            raise ConfigError(f"{self.section}.beta_fast={beta_fast} must not be below beta_slow={beta_slow}")
        truncate = self.params.get("truncate", True)
        if not isinstance(truncate, bool):
            raise ConfigError(f"{self.section}.truncate={truncate!r} must be true or false")
        return RopeConfig(
            "yarn",
            theta,
            factor,
            original,
            beta_fast=beta_fast,
            beta_slow=beta_slow,
            truncate=truncate,
            attention_factor=attention,
        )

    def _longrope(self, theta: float) -> RopeConfig:
        factor, original = self._stretch(), self._original()
        if original < 2:
            raise ConfigError(f"{self.section}.original_max_position_embeddings={original} must be at least 2")
        attention = self._optional("attention_factor")
        if attention is None:
            # LongRoPE (arXiv:2402.13753) as published with Phi-3.
            attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        return RopeConfig(
            "longrope",
            theta,
            factor,
            original,
            attention_factor=attention,
            short_factor=self._list("short_factor"),
            long_factor=self._list("long_factor"),
        )

    def _stretch(self) -> float:
        """The factor, or the ratio of the two context lengths where a checkpoint gives only those."""
        factor = self._optional("factor")
        return self._max_position() / self._original() if factor is None else factor

    def _stated_original(self) -> Any:
        key = "original_max_position_embeddings"  # Phi-3 keeps it beside the section, where it wins
        return self.params.get(key) if self.cfg.get(key) is None else self.cfg[key]

    def _original(self) -> int:
        stated = self._stated_original()
        if stated is None:
            return self._max_position()
        return _length(stated, f"{self.section}.original_max_position_embeddings")

    def _max_position(self) -> int:
        if self.cfg.get("max_position_embeddings") is None:
            raise ConfigError("max_position_embeddings is missing; this RoPE kind needs it")
        return _length(self.cfg["max_position_embeddings"], "max_position_embeddings")

    def _number(self, key: str) -> float:
        if self.params.get(key) is None:
            raise ConfigError(f"{self.section}.{key} is missing; give a positive number")
        return _positive(self.params[key], f"{self.section}.{key}")

    def _optional(self, key: str) -> float | None:
        return None if self.params.get(key) is None else self._number(key)

    def _list(self, key: str) -> tuple[float, ...]:
        values, name, expected = self.params.get(key), f"{self.section}.{key}", self.head_dim // 2
        if not isinstance(values, list | tuple):
            raise ConfigError(f"{name}={values!r} must be a list of {expected} positive numbers")
        if len(values) != expected:
            raise ConfigError(f"{name} has {len(values)} numbers, must have head_dim / 2 = {expected}")
        return tuple(_positive(value, f"{name}[{i}]") for i, value in enumerate(values))


def _yarn_mscale(factor: float, weight: float) -> float:
    """Growth of the logits' scale with the context, YaRN (arXiv:2309.00071) eq. 22."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _positive(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name}={value!r} must be a positive number")
    return float(value)


def _length(value: Any, name: str) -> int:
    number = _positive(value, name)
    if number != int(number):
        raise ConfigError(f"{name}={value!r} must be a whole number of tokens")
    return int(number)
