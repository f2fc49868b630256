"""What check_env --plan says of InternLM2.5-1.8B on 24 GiB, the size of LMDeploy's tutorial."""

import json

import pytest

from jaxdeploy.cache.sizing import MARGIN_BYTES
from jaxdeploy.cli.main import main
from jaxdeploy.cli.memory_table import parse_bytes
from jaxdeploy.errors import ConfigError

GIB = 2**30
INTERNLM2_5_1_8B = {
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "torch_dtype": "bfloat16",
    "bias": False,
    "vocab_size": 92544,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
}


@pytest.fixture
def config_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(INTERNLM2_5_1_8B))
    return file


def plan(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["check_env", "--plan", *arguments])
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_the_tutorials_table(capsys, config_file):
    rows = json.loads(plan(capsys, str(config_file.parent), "--gpu-memory", "24GiB", "--json"))
    found = {(row["weights"], row["kv_bits"], row["share"]): row for row in rows}
    assert set(found) == {(w, b, s) for w in ("bfloat16", "W4A16") for b in (16, 8, 4) for s in (0.8, 0.4)}
    assert found["bfloat16", 16, 0.8]["weight_bytes"] / GIB == pytest.approx(3.52, abs=0.01)
    assert found["W4A16", 16, 0.8]["weight_bytes"] / GIB == pytest.approx(1.44, abs=0.01)
    for (weights, bits, share), row in found.items():
        free = 24 * GIB - row["weight_bytes"] - row["step_bytes"] - row["state_bytes"] - MARGIN_BYTES
        assert share * free - row["cache_bytes"] < row["cache_bytes"] / row["pages"], "less than a page is left over"
        assert row["tokens"] == 64 * row["pages"]
        # K and V of 24 layers x 8 heads x 128, and two float16 per token and head where they are quantized.
        assert row["cache_bytes"] == row["tokens"] * 2 * 24 * 8 * (16 * bits + 4 * (bits < 16))
        more = row["tokens"] / found[weights, 16, share]["tokens"]
        assert more == pytest.approx({16: 1, 8: 256 / 132, 4: 256 / 68}[bits], rel=1e-3)


def test_text_and_options(capsys, config_file):
    lines = plan(capsys, str(config_file), "--gpu-memory", "24 GiB", "--max-batch-size", "16").splitlines()
    assert len(lines) == 14
    assert lines[0].startswith("24.0 GiB: weights, step buffers (estimated,")
    assert lines[2].split()[:5] == ["bfloat16", "3.52", "GiB", "16", "bits"]
    many = plan(capsys, str(config_file), "--gpu-memory", "24GiB", "--max-batch-size", "256").splitlines()
    tokens = [int(text[2].split()[-1].replace(",", "")) for text in (lines, many)]
    assert tokens[0] > tokens[1], "a larger batch needs larger buffers"


def test_what_does_not_fit_is_said(capsys, config_file):
    lines = plan(capsys, str(config_file), "--gpu-memory", "3GB").splitlines()
    assert all("no room" in line for line in lines if line.startswith("bfloat16"))
    assert not any("no room" in line for line in lines if line.startswith("W4A16"))


def test_sizes():
    assert [parse_bytes(text) for text in ("24GiB", "80 GB", "1024", "1.5g")] == [
        24 * GIB,
        80 * 10**9,
        1024,
        3 * GIB // 2,
    ]
    for wrong in ("", "GiB", "24 Gb/s", "1.2.3G", "-4GiB"):
        with pytest.raises(ConfigError, match="must be a size"):
            parse_bytes(wrong)
