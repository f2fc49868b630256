"""The files that hold a tokenizer in a Hugging Face checkpoint, for one that came from a GGUF file."""

import json
from typing import Any

from jaxdeploy.text.hf_tokenizer import HfTokenizer
from jaxdeploy.text.sentencepiece_tokenizer import SentencePieceTokenizer


def tokenizer_files(tokenizer: HfTokenizer | SentencePieceTokenizer) -> dict[str, bytes]:
    """File contents by name: the vocabulary, tokenizer_config.json, generation_config.json and chat_template.jinja.

    ``load_tokenizer`` of a folder with these files encodes and decodes as ``tokenizer`` does.
    """
    name, vocabulary = tokenizer.model_file()
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast" if name == "tokenizer.json" else "LlamaTokenizer",
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "add_bos_token": tokenizer.bos_id is not None and tokenizer.prefix_ids == (tokenizer.bos_id,),
        "add_eos_token": bool(tokenizer.suffix_ids),
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(token): {
                "content": content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token in tokenizer.special_ids,
            }
            for content, token in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
        },
    }
    files = {name: vocabulary, "tokenizer_config.json": _json(config)}
    generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.eos_ids)}
    files["generation_config.json"] = _json(
        {key: value for key, value in generation.items() if value not in (None, [])}
    )
    if tokenizer.chat_template is not None:
        files["chat_template.jinja"] = tokenizer.chat_template.encode("utf-8")
    return files


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
