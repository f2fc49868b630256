"""Files made of a GGUF file's tokenizer give the same tokenizer back."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from jaxdeploy.demo import demo_model_path
from jaxdeploy.text.gguf_tokenizer import tokenizer_from_gguf
from jaxdeploy.text.tokenizer import load_tokenizer
from jaxdeploy.text.tokenizer_export import tokenizer_files
from jaxdeploy.weights.gguf_file import GGUFFile

TEXTS = (
    "",
    "Hello, world!",
    "  12345 né 漢字 🙂\n\n\tx",
    "<|im_start|>user\nHi<|im_end|>\n",
    "def f(x):\n    return x ** 2",
)


@pytest.fixture(scope="module")
def demo():
    file = GGUFFile(demo_model_path())
    return tokenizer_from_gguf(file.metadata, "demo")


def test_the_demo_models_tokenizer_comes_back(demo, tmp_path: Path):
    for name, content in tokenizer_files(demo).items():
        (tmp_path / name).write_bytes(content)
    back = load_tokenizer(tmp_path)
    for text in TEXTS:
        assert back.encode(text, add_special=True) == demo.encode(text, add_special=True), text
        assert back.decode(demo.encode(text, add_special=False), skip_special=False) == text
    for field in ("vocab_size", "bos_id", "eos_ids", "special_ids", "prefix_ids", "suffix_ids", "chat_template"):
        assert getattr(back, field) == getattr(demo, field), field


def test_transformers_reads_it_too(demo, tmp_path: Path):
    for name, content in tokenizer_files(demo).items():
        (tmp_path / name).write_bytes(content)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert theirs.encode(text) == demo.encode(text, add_special=True)
    messages = [{"role": "user", "content": "Hi"}]
    assert "<|im_start|>user\nHi<|im_end|>" in str(theirs.apply_chat_template(messages, tokenize=False))


def test_what_is_put_around_a_text_is_kept(tmp_path: Path):
    tokens = ["<s>", "</s>", *(chr(code) for code in range(33, 127)), "Ġ"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
    }
    tokenizer = tokenizer_from_gguf(metadata)
    for name, content in tokenizer_files(tokenizer).items():
        (tmp_path / name).write_bytes(content)
    assert load_tokenizer(tmp_path).encode("ab c", add_special=True) == tokenizer.encode("ab c", add_special=True)
    assert tokenizer.prefix_ids == (0,)
