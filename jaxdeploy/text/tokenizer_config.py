"""The small JSON files beside a tokenizer: which tokens are special, what is put around a text, the chat template."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxdeploy.errors import CheckpointError

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token matched in the text before the vocabulary sees it.

    Attributes:
        content: its text.
        token_id: its id; None where the files do not say (the vocabulary then knows it, or it is appended).
        special: left out by ``decode(skip_special=True)``.
        lstrip, rstrip: it also swallows the white space to its left, right.
        single_word: it only matches between non-word characters.
    """

    content: str
    token_id: int | None = None
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """What the files around a vocabulary say.

    Attributes:
        bos_token, eos_token: texts of these tokens, None where there is none.
        added_tokens: in the order of their ids, those without one last.
        add_bos, add_eos: whether they are put around a text; None where the files do not say.
        generation_eos_ids: ``eos_token_id`` of generation_config.json.
        chat_template: jinja source.
        legacy: Llama's sentencepiece rule: True puts a space in front of every stretch between special tokens,
            False only in front of the first.
    """

    bos_token: str | None = None
    eos_token: str | None = None
    added_tokens: tuple[AddedToken, ...] = ()
    add_bos: bool | None = None
    add_eos: bool | None = None
    generation_eos_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    legacy: bool = field(default=True)


def read_tokenizer_config(directory: Path) -> TokenizerConfig:
    """Reads tokenizer_config.json, special_tokens_map.json, added_tokens.json, generation_config.json and
    chat_template.jinja of a directory; each may be missing.

    Raises:
        CheckpointError: a file is not what it should be; the message names it.
    """
    path = directory / "tokenizer_config.json"
    config = _read_json(path)
    special_map = _read_json(directory / "special_tokens_map.json")
    named = {key: _content(config.get(key, special_map.get(key)), path) for key in _NAMED_TOKENS}
    return TokenizerConfig(
        bos_token=named["bos_token"],
        eos_token=named["eos_token"],
        added_tokens=_added_tokens(path, config, special_map, named, _read_json(directory / "added_tokens.json")),
        add_bos=config.get("add_bos_token"),
        add_eos=config.get("add_eos_token"),
        generation_eos_ids=_eos_ids(directory / "generation_config.json"),
        chat_template=_chat_template(directory, config),
        legacy=config.get("legacy") is not False,
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON in UTF-8: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def _content(value: Any, path: Path) -> str | None:
    """A token is spelt as its text or as ``{"content": text, ...}``."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise CheckpointError(f"{path}: a token must be a string or an object with `content`, found {value!r}")
    return text


def _added_tokens(
    path: Path, config: dict, special_map: dict, named: dict[str, str | None], extra: dict
) -> tuple[AddedToken, ...]:
    found: dict[str, AddedToken] = {}
    for key, entry in config.get("added_tokens_decoder", {}).items():
        content = _content(entry, path)
        if content is None or not key.isdecimal():
            raise CheckpointError(
                f"{path}: added_tokens_decoder[{key!r}] must be an id with a `content`, found {entry}"
            )
        flags = {name: bool(entry.get(name, False)) for name in ("special", "lstrip", "rstrip", "single_word")}
        found[content] = AddedToken(content, int(key), **flags)
    for content, token in extra.items():
        found.setdefault(content, AddedToken(content, token, special=False))
    others = config.get("additional_special_tokens") or special_map.get("additional_special_tokens") or []
    specials = [*named.values(), *(_content(value, path) for value in others)]
    for content in specials:
        if content is None:
            continue
        known = found.get(content)
        if known is None:
            found[content] = AddedToken(content)
        elif not known.special:
            found[content] = AddedToken(content, known.token_id, True, known.lstrip, known.rstrip, known.single_word)
    return tuple(sorted(found.values(), key=lambda token: (token.token_id is None, token.token_id or 0)))


def _eos_ids(path: Path) -> tuple[int, ...]:
    value = _read_json(path).get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) for item in values):
        raise CheckpointError(f"{path}: eos_token_id must be an id or a list of ids, found {value!r}")
    return tuple(values)


def _chat_template(directory: Path, config: dict) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is not UTF-8: {error}") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        # Several named templates; `default` is the one for plain chat.
        by_name = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = by_name.get("default", next(iter(by_name.values()), None))
    if template is not None and not isinstance(template, str):
        raise CheckpointError(
            f"{directory / 'tokenizer_config.json'}: chat_template must be a string or a list of them"
        )
    return template
