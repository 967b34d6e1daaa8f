"""How many responses fit into memory at once."""

import os
from pathlib import Path
from typing import Any

import torch

from ..models.load import DTYPES
from ..models.policy import Policy

EXAM_ROWS_LIMIT = 256
"""Beyond this a larger batch gains nothing."""
EXAM_CACHE_SHARE = 0.5
"""Of the free memory, for keys and values; the rest is for the cache's growth, logits and activations."""


def fitting_batch(policy: Policy, positions: int, free: int | None = None) -> int:
    """Responses of `positions` tokens, prompt included, whose keys and values fill EXAM_CACHE_SHARE of the free memory.

    At least 1, at most EXAM_ROWS_LIMIT. free: bytes, by default what is free now where the policy is.
    """
    room = EXAM_CACHE_SHARE * (free_bytes(policy.device) if free is None else free)
    return max(1, min(EXAM_ROWS_LIMIT, int(room // (positions * bytes_per_token(policy)))))


def bytes_per_token(policy: Policy) -> int:
    """Keys and values of all layers for one token: 2 x layers x key-value heads x head size x bytes a number.

    Too much, so on the safe side, for layers with a window or a recurrent state; a model without heads counts as one.
    """
    config: Any = policy.model.config.get_text_config()
    own = getattr(config, "num_attention_heads", None) or 1
    heads = getattr(config, "num_key_value_heads", None) or own
    size = getattr(config, "head_dim", None) or config.hidden_size // own
    dtype = DTYPES[policy.compute] if policy.compute else policy.head.weight.dtype
    return 2 * config.num_hidden_layers * heads * size * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken: of the GPU, or of the machine, where file caches count as free if it says so."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else []
    available = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    if available is not None:
        return 1024 * int(available)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
