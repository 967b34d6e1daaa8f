"""Sizes of a model, from its configuration. If that is not on this machine, from its name."""

import re
from dataclasses import dataclass
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from ..errors import InputError
from ..models.sources import SMOL, resolve


@dataclass(frozen=True)
class Shape:
    """A dense decoder with gated feed-forward layers (Llama, Qwen2, Qwen3)."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """Whether the input and the output embedding are the same tensor."""
    qk_norm: bool = True
    """Whether queries and keys are normalised (Qwen3)."""
    context: int | None = None
    """Most positions, if its configuration says so."""
    source: str = ""
    """Where these numbers come from."""

    @property
    def embedding(self) -> int:
        """Parameters of one embedding."""
        return self.vocabulary * self.hidden

    @property
    def matrices(self) -> int:
        """Parameters of the body's matrix products. Each costs a multiplication and an addition a position."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """All parameters."""
        norms = self.layers * (2 * self.hidden + 2 * self.head_dim * self.qk_norm) + self.hidden
        return self.embedding * (1 if self.tied else 2) + self.matrices + norms

    @property
    def read_per_step(self) -> int:
        """Parameters that a decoding step reads. A separate input embedding is not among them."""
        return self.matrices + self.embedding

    def kv_bytes(self, width: int) -> int:
        """Bytes of a position in the key-value cache, `width` bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * width

    def forward_flops(self, length: float) -> float:
        """Operations of the body's forward a position, in sequences of `length` positions.

        They are the products with the weights, and causal attention over half the sequence on average.
        """
        return 2 * self.matrices + 2 * self.layers * self.heads * self.head_dim * length

    @property
    def head_flops(self) -> int:
        """Operations of one product with the vocabulary a position."""
        return 2 * self.embedding


def _qwen3(layers: int, hidden: int, intermediate: int, heads: int, tied: bool) -> Shape:
    source = "from its name; sizes of the published config.json"
    return Shape(layers, hidden, intermediate, heads, 8, 128, 151_936, tied, source=source)


KNOWN = {
    "Qwen3-0.6B": _qwen3(28, 1024, 3072, 16, True),
    "Qwen3-1.7B": _qwen3(28, 2048, 6144, 16, True),
    "Qwen3-4B": _qwen3(36, 2560, 9728, 32, True),
    "Qwen3-8B": _qwen3(36, 4096, 12288, 32, False),
    "SmolLM2-135M": Shape(
        30, 576, 1536, 9, 3, 64, 49_152, True, False, source="from its name; sizes of the published config.json"
    ),
}
"""By the start of a model's name. Versions of a model (-Base, -Instruct, your own) have the same sizes."""


ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers that are estimated. One with a window counts as if it saw everything, so its cache is smaller."""


def shape_of(path: str, role: str) -> Shape:
    """Sizes of the model that `ROLE.path` names. Reads neither its weights nor the network.

    Raises InputError if the model has no configuration here and its name is not known, or if it is no dense decoder.
    """
    known = _by_name(path)
    if path == SMOL and known is not None:  # resolving it would unpack it
        return known
    where = resolve(path, role)
    try:
        config = AutoConfig.from_pretrained(where, local_files_only=True)
    except (OSError, ValueError):
        if known is None:
            raise InputError(
                f"{role}.path = {path!r}: no config.json of it is on this machine and its name is not known "
                f"({', '.join(KNOWN)}), so nothing can be estimated; give a local folder"
            ) from None
        return known
    return _of_config(config.get_text_config(), path, role)


def _by_name(path: str) -> Shape | None:
    name = path.rstrip("/").split("/")[-1]
    return next((shape for start, shape in KNOWN.items() if re.match(rf"{re.escape(start)}(?![\w.])", name)), None)


def _of_config(config: Any, path: str, role: str) -> Shape:
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise InputError(f"{role}.path = {path!r}: mixtures of experts cannot be estimated; leave the estimate out")
    kinds = set(getattr(config, "layer_types", None) or ()) - ATTENTION
    if kinds or getattr(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None), "_is_stateful", False):
        shown = f" ({', '.join(sorted(kinds))})" if kinds else ""
        raise InputError(
            f"{role}.path = {path!r}: layers that are no attention{shown} cannot be estimated; leave the estimate out"
        )
    try:
        heads = config.num_attention_heads
        return Shape(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.vocab_size,
            config.tie_word_embeddings,
            config.model_type == "qwen3",
            getattr(config, "max_position_embeddings", None),
            "its config.json",
        )
    except AttributeError as error:
        raise InputError(f"{role}.path = {path!r}: {error}, so nothing can be estimated; leave it out") from None
