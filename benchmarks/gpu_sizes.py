"""Sizes of the GPU programs, their random models and batches, and the operations that these take.

Operations, 2 to a multiply-add. N response tokens, H hidden size, V vocabulary:
    body forward as `Shape.forward_flops` has it (causal attention: half of the square); backward twice that
    a product of hidden states and head 2 N H V; a product with K rows of the head 2 N H K
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from training import random_batch
from transformers import AutoModelForCausalLM, Qwen3Config

from driftgate.config import TrainConfig
from driftgate.data.experience import Experience
from driftgate.estimate.shapes import KNOWN, Shape
from driftgate.recipe import load_recipe

K = 32
LOGIT_SPREAD = 4.5
"""Standard deviation, about, of logits whose choices are as sharp as a trained model's. A random model's is near 1."""
RECIPES = {"LSM": "qwen3/lsm_block64", "sampled token": "qwen3/sampled_token_block64"}


@dataclass(frozen=True)
class GpuSize:
    """What the programs measure at."""

    student: Shape
    teacher: Shape
    sequences: int = 8
    prompt: int = 64
    response: int = 1024
    chunks: tuple[int, ...] = (256, 512, 1024, 2048)
    """Tokens of the head's chunks."""
    budgets: tuple[int, ...] = (8192, 16_384)
    """Most tokens of one forward, `microbatch_tokens`."""
    rows: int = 64
    """Responses decoded at once."""
    new: tuple[int, ...] = (256,)
    """Tokens of each."""
    compared: int = 512
    """Tokens on which the head is compared with float64."""
    layers: int = 4
    """Layers of the student whose updates are compared bit for bit."""

    @property
    def vocabulary(self) -> int:
        return self.student.vocabulary

    @property
    def tokens(self) -> int:
        """Response tokens of the batch."""
        return self.sequences * self.response

    def with_long(self, long: bool) -> "GpuSize":
        """long: decode four times as many tokens too."""
        return replace(self, new=(*self.new, 4 * self.new[-1])) if long else self

    def described(self) -> dict[str, Any]:
        return asdict(self)

    def body_operations(self, shape: Shape) -> float:
        """Operations of one forward of the batch through the body."""
        length = self.prompt + self.response
        return self.sequences * length * shape.forward_flops(length)

    def head_operations(self, shape: Shape, products: float, gathers: float = 0) -> float:
        """Operations of products of the batch's hidden states with the whole head, and with K rows of it."""
        return self.tokens * (products * shape.head_flops + gathers * 2.0 * shape.hidden * K)


FULL = GpuSize(KNOWN["Qwen3-1.7B"], KNOWN["Qwen3-4B"])
QUICK = GpuSize(
    Shape(2, 64, 128, 4, 2, 16, 500, True),
    Shape(2, 96, 160, 4, 2, 16, 500, True),
    sequences=2,
    prompt=8,
    response=64,
    chunks=(16, 32, 64, 128),
    budgets=(72, 256),
    rows=4,
    new=(12,),
    compared=64,
    layers=2,
)


def config_of(objective: str, overrides: Iterable[str] = ()) -> TrainConfig:
    """The paper's recipe with its gate, nothing diagnosed."""
    return load_recipe(RECIPES[objective], ["diagnostics.every=0", *overrides])


def model_config(shape: Shape) -> Qwen3Config:
    return Qwen3Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
        # at any width, layers outweigh the embedding that they are added to, and logits have a deviation near 1
        initializer_range=shape.hidden**-0.5,
        tie_word_embeddings=shape.tied,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )


def model_of(shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
    """Random weights, the same each time, made on the device."""
    torch.manual_seed(0)
    with device:
        config = model_config(shape)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


@torch.no_grad()
def spread(model: Any) -> Any:
    """The model with logits as far apart as a trained model's, so that what it writes depends on what it read."""
    model.base_model.norm.weight.mul_(LOGIT_SPREAD)
    return model


def random_ids(vocabulary: int, *shape: int) -> Tensor:
    """int64, the same each time, on the CPU."""
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))


def batch_of(size: GpuSize) -> Experience:
    """A rollout batch of random tokens with random scores."""
    shown = random_ids(size.vocabulary, size.sequences, size.prompt)
    return random_batch(shown, random_ids(size.vocabulary, size.sequences, size.response), size.vocabulary, K)
