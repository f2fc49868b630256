"""Which chat template a model gets."""

import json
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from jaxdeploy.errors import CheckpointError, ConfigError
from jaxdeploy.text.chat_template import ChatTemplate
from jaxdeploy.text.tokenizer import Tokenizer

# Stop tokens that the format needs besides EOS.
_BUILT_IN: dict[str, tuple[str, ...]] = {
    "internlm2": ("<|im_end|>", "<|action_end|>"),
    "chatml": ("<|im_end|>",),
    "base": (),
}


@dataclass(frozen=True, slots=True)
class ChatTemplateConfig:
    """LMDeploy's chat template by pieces of text, as its JSON files hold it.

    A turn is the role's opening text, the content, the role's closing text. Defaults are LMDeploy's: everything is
    empty; an empty (not absent) ``meta_instruction`` still writes an empty system turn.

    Attributes:
        system, eosys: around a system turn.
        meta_instruction: system prompt of a conversation that has none.
        user, eoh: around a user turn.
        assistant, eoa: around an assistant turn.
        tool, eotool: around a tool's answer.
        separator: after an assistant turn that is not the last.
        stop_words: texts that end an answer.
    """

    system: str = ""
    meta_instruction: str | None = ""
    eosys: str = ""
    user: str = ""
    eoh: str = ""
    assistant: str = ""
    eoa: str = ""
    tool: str = ""
    eotool: str = ""
    separator: str = ""
    stop_words: tuple[str, ...] = ()

    def template(self, name: str) -> ChatTemplate:
        """The template that renders it."""
        pieces = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "stop_words"}
        return ChatTemplate(_source("lmdeploy"), name=name, variables=pieces, stop_tokens=self.stop_words)


_CHATML_PIECES = ChatTemplateConfig(
    system="<|im_start|>system\n",
    meta_instruction=None,
    eosys="<|im_end|>\n",
    user="<|im_start|>user\n",
    eoh="<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    eoa="<|im_end|>",
    tool="<|im_start|>environment name=<|plugin|>\n",
    eotool="<|im_end|>\n",
    separator="\n",
    stop_words=_BUILT_IN["internlm2"],
)
# A JSON file may start from a named template and change some of its pieces.
_NAMED_PIECES = {"internlm2": _CHATML_PIECES}


def choose_chat_template(family: str, tokenizer: Tokenizer, override: str | None) -> ChatTemplate:
    """The template to use, by order: the override, InternLM2's own (the checkpoint's shows no tools), the checkpoint's,
    and for a model without any: contents put one after the other (``is_base``).

    Args:
        family: the model's family, as ``ModelConfig.family``.
        tokenizer: carries the checkpoint's template and the texts of BOS and EOS.
        override: built-in name (internlm2, chatml, base), path of a jinja file, or of a JSON file with LMDeploy's keys.

    Raises:
        ConfigError: the override names nothing, or its file is bad; the message has path and reason.
        CheckpointError: the checkpoint's template is not valid jinja.
    """
    if override is not None:
        return _built_in(override, tokenizer) if override in _BUILT_IN else _from_file(Path(override), tokenizer)
    if family == "internlm2":
        return _built_in("internlm2", tokenizer)
    if tokenizer.chat_template is None:
        return _built_in("base", tokenizer)
    try:
        return ChatTemplate(tokenizer.chat_template, name="of the checkpoint", variables=_token_texts(tokenizer))
    except ConfigError as error:
        raise CheckpointError(f"{error}; pass --chat-template to use another") from None


def _built_in(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(
        _source(name),
        name=name,
        variables=_token_texts(tokenizer),
        stop_tokens=_BUILT_IN[name],
        is_base=name == "base",
    )


def _source(name: str) -> str:
    return (files("jaxdeploy.text") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def _token_texts(tokenizer: Tokenizer) -> dict[str, str]:
    return {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}


def _from_file(path: Path, tokenizer: Tokenizer) -> ChatTemplate:
    if not path.is_file():
        known = ", ".join(_BUILT_IN)
        raise ConfigError(f"chat template {str(path)!r} is neither a built-in one ({known}) nor a file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat template {path} can't be read: {error}") from None
    if path.suffix == ".json":
        return _config_from_json(text, path).template(str(path))
    return ChatTemplate(text, name=str(path), variables=_token_texts(tokenizer))


def _config_from_json(text: str, path: Path) -> ChatTemplateConfig:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"chat template {path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"chat template {path} holds a {type(values).__name__}, expected a JSON object")
    pieces = _NAMED_PIECES.get(str(values.get("model_name")), ChatTemplateConfig())
    known = {field.name: getattr(pieces, field.name) for field in fields(pieces)}
    for key, value in values.items():
        # `capability` told LMDeploy's HTTP server apart chat and completion models; rendering never used it.
        if key in ("model_name", "capability") or (value is None and key in known):
            continue
        if key not in known:
            raise ConfigError(f"chat template {path} has the unknown key {key!r}; known: {', '.join(known)}")
        known[key] = _stop_words(value, path) if key == "stop_words" else _piece(key, value, path)
    return ChatTemplateConfig(**known)


def _piece(key: str, value: Any, path: Path) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"chat template {path}: {key} must be a string, found {value!r}")
    return value


def _stop_words(value: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word for word in value):
        raise ConfigError(f"chat template {path}: stop_words must be a list of non-empty strings, found {value!r}")
    return tuple(value)
