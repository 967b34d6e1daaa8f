"""A model, or its adapter, as a folder that transformers loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from .policy import Policy

Read = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""From tensors of which the shape and the type count to whole ones of the same names."""


def save_model(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights, configuration and tokenizer; of a model with adapters the adapter alone, which names its base. Raises
    OSError or SafetensorError where the disk refuses."""
    if policy.adapters is not None:
        policy.adapters.save(folder)
    else:
        policy.model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)


def save_layers(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path, read: Read) -> None:
    """The same, with a file for each layer, so that no more than a layer is in memory; an adapter is one file.

    Raises as `save_model` does.
    """
    model: Any = policy.model
    if policy.adapters is not None:
        policy.adapters.save(folder, read({name: p for name, p in model.named_parameters() if p.requires_grad}))
        tokenizer.save_pretrained(folder)
        return
    folder.mkdir()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    buffers = persistent_buffers(model)
    groups, files, size = by_layer(dict(model.named_parameters())) + [buffers] * bool(buffers), {}, 0
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        whole = group if group is buffers else read(group)
        written = _write(revert_weight_conversion(model, whole), folder / name)
        del whole
        files |= dict.fromkeys(written, name)
        size += sum(written.values())
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def plain_weights(policy: Policy) -> dict[str, Tensor]:
    """Every tensor of a saved model as it would be decoded with, whole, adapters merged, by its Hugging Face name; of
    tied ones the first. Not copied where the live ones will do. Every rank has to call this."""
    model: Any = policy.for_decoding()
    whole = {name: value.detach() for name, value in model.named_parameters()} | persistent_buffers(model)
    return revert_weight_conversion(model, whole)


def _write(tensors: dict[str, Tensor], file: Path) -> dict[str, int]:
    """Returns bytes by name and keeps no tensor, so that they are gone before the next ones are read."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, metadata={"format": "pt"})
    return {name: value.nbytes for name, value in tensors.items()}


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that belong to a saved model; every rank holds them whole. Not by `state_dict`, which tells a sharded model
    to free what it has gathered, and it may be training."""
    own = ((f"{path}.{name}".lstrip("."), name, part) for path, part in model.named_modules() for name in part._buffers)
    found = {whole: part._buffers[name] for whole, name, part in own if name not in part._non_persistent_buffers_set}
    return {name: value for name, value in found.items() if value is not None}


def by_layer(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Tensors of one decoder layer together, each other tensor alone."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        words = name.split(".")
        numbers = [place for place, word in enumerate(words) if word.isdigit()]
        key = ".".join(words[: numbers[0] + 1]) if numbers else name
        groups.setdefault(key, {})[name] = value
    return list(groups.values())
