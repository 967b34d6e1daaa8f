"""A model as a folder that transformers loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from .policy import Policy

Read = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""From tensors of which the shape and the type count to whole ones of the same names."""


def save_model(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights, configuration and tokenizer. Raises OSError or SafetensorError where the disk refuses."""
    policy.model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)


def save_layers(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path, read: Read) -> None:
    """The same, with a file for each layer, so that no more than a layer is in memory. Raises as `save_model` does."""
    model: Any = policy.model
    folder.mkdir()
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    groups, files, size = by_layer(dict(model.named_parameters())), {}, 0
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        written = _write(revert_weight_conversion(model, read(group)), folder / name)
        files |= dict.fromkeys(written, name)
        size += sum(written.values())
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write(tensors: dict[str, Tensor], file: Path) -> dict[str, int]:
    """Returns bytes by name and keeps no tensor, so that they are gone before the next ones are read."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, metadata={"format": "pt"})
    return {name: value.nbytes for name, value in tensors.items()}


def by_layer(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Tensors of one decoder layer together, each other tensor alone."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        words = name.split(".")
        numbers = [place for place, word in enumerate(words) if word.isdigit()]
        key = ".".join(words[: numbers[0] + 1]) if numbers else name
        groups.setdefault(key, {})[name] = value
    return list(groups.values())
