"""What the layers of a model keep between tokens: keys and values of every position, or something else."""

from typing import Any

ADDED = ("bloom", "mpt")
"""Model types that add a bias by distance (ALiBi) to the attention scores, where no setting says so."""


def has_full_attention(model: Any) -> bool:
    """Whether every layer attends to every earlier position, and adds nothing to the scores: whether a mask of ours and
    a cache of keys and values serve the model, through torch's scaled_dot_product_attention."""
    text = model.config.get_text_config()
    fused = getattr(model, "_supports_sdpa", False) and model.config._attn_implementation == "sdpa"
    plain = text.model_type not in ADDED and not getattr(text, "alibi", False)
    return fused and plain and not getattr(model, "_is_stateful", False) and not has_windows(text)


def has_windows(text: Any) -> bool:
    """Whether the configuration of a model's text part names layers that see a window, or are no attention."""
    kinds, window = set(getattr(text, "layer_types", None) or ()), getattr(text, "sliding_window", None)
    if not kinds:
        return window is not None and getattr(text, "use_sliding_window", True)
    return bool(kinds - {"full_attention"})
