"""Sizes at which `scaling.py` measures."""

from dataclasses import dataclass
from typing import NamedTuple


class HeadSize(NamedTuple):
    """Sizes of the head's inputs."""

    tokens: int
    vocabulary: int
    support: int


BASE = HeadSize(1024, 32_768, 32)


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    base: HeadSize = BASE
    hidden: int = 64
    tokens: tuple[int, ...] = (1024, 2048, 4096, 8192, 16_384)
    tokens_full: int = 8192
    """The most tokens for which full logits are made. More take minutes, and over 7 GB."""
    tokens_rounds: int = 2
    vocabulary: tuple[int, ...] = (8192, 16_384, 32_768, 65_536, 151_936)
    support: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    blocks: tuple[int | None, ...] = (1, 16, 64, 256, None)
    """Tokens of a block; None for the whole sequence."""
    memory: tuple[str, ...] = ("tokens", "vocabulary", "support")
    """Sizes along which memory is measured too."""
    memory_ways: tuple[str, ...] = ("full logits", "ours")
    """Ends of the names of the ways whose memory is measured."""
    noise: int = 3
    """Times that memory at the base is measured."""
    at_once: int = 1
    """Processes that measure memory at the same time."""
    response: int = 2048
    """Tokens of a response."""
    passes: tuple[int, ...] = (1, 2, 4, 8)
    problems: int = 256
    """Problems of the embedded pair, more than the steps show."""
    recipe: tuple[str, ...] = ()
    """Changes to the embedded pair's recipe."""
    layers: int = 4
    width: int = 256
    wide_vocabulary: int = 151_936
    wide_prompt: int = 32
    wide_response: int = 128
    wide_responses: int = 8


QUICK = Sizes(
    base=HeadSize(128, 512, 4),
    hidden=16,
    tokens=(128, 256),
    vocabulary=(256, 512),
    support=(4, 8),
    blocks=(1, None),
    memory=("tokens",),
    memory_ways=("gated LSM, ours",),
    noise=0,
    at_once=2,
    response=64,
    passes=(1, 2),
    problems=8,
    recipe=("prompts.per_step=2", "rollout.max_new_tokens=16", "rollout.allow_truncated=true"),
    layers=1,
    width=32,
    wide_vocabulary=512,
    wide_prompt=8,
    wide_response=16,
    wide_responses=2,
)
