"""RoPE sections of published models, for golden frequencies: name -> (config.json keys, head_dim, length)."""

from typing import Any

ROPE_CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "llama2": ({"max_position_embeddings": 4096}, 128, 4096),
    "llama3_1": (
        {
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
        128,
        100000,
    ),
    "internlm2_5_within": (
        {
            "max_position_embeddings": 32768,
            "rope_theta": 1000000,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
        },
        128,
        32768,
    ),
    "internlm2_5_beyond": (
        {
            "max_position_embeddings": 32768,
            "rope_theta": 1000000,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
        },
        128,
        200000,
    ),
    "internlm3_beyond": (
        {
            "max_position_embeddings": 32768,
            "rope_theta": 50000000,
            "rope_scaling": {"rope_type": "dynamic", "factor": 6.0},
        },
        128,
        40000,
    ),
    "qwen2_5_yarn": (
        {
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        },
        128,
        100000,
    ),
    "linear": ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.5}}, 64, 4096),
    "longrope_long": (
        {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {
                "rope_type": "longrope",
                "short_factor": [1.0 + 0.01 * i for i in range(48)],
                "long_factor": [1.0 + 1.3 * i for i in range(48)],
            },
        },
        96,
        4097,
    ),
}
