"""What an estimate assumes. Each assumption is printed with the estimate."""

from dataclasses import MISSING, dataclass, field
from typing import Any

from .gpus import GB


def _assumed(meaning: str, value: Any = MISSING) -> Any:
    """A field with the text that it is printed as."""
    return field(default=value, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Assumptions:
    """Shares are from 0 to 1. The metadata of each field holds its meaning."""

    mean_length: float = _assumed("mean length of a response, as a fraction of max_new_tokens")
    prompt_tokens: int = _assumed("tokens of a prompt", 256)
    training_share: float = _assumed("share of the peak operations that forward and backward reach", 0.4)
    scoring_share: float = _assumed("share of the peak operations that forwards alone reach", 0.5)
    bandwidth_share: float = _assumed("share of the peak bandwidth at which decoding reads weights and cache", 0.6)
    launch: float = _assumed("seconds to launch a layer's kernels at a decoding step, however little they do", 0.25e-3)
    usable: float = _assumed("share of the memory that is usable; the rest goes to fragments", 0.92)
    context: float = _assumed("bytes of the CUDA context and its libraries", 1.5 * GB)
