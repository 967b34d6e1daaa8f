"""LoRA adapters on a frozen base (arXiv 2106.09685), by peft. No other file imports peft.

peft wraps the linear layers of the Hugging Face model in place. That inner model is what `Policy` holds.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .. import keyed
from ..config.models import LoraSettings
from ..errors import InputError

TRAINED = "default"
"""peft's name of the adapter that is trained."""
FOLLOWER = "teacher"
"""Of another adapter in the same base: the teacher that follows the student."""
WRITER = "writer"
"""Of another: the student that wrote the rollouts, while the trained one moves on."""
WEIGHTS = "adapter_model.safetensors"


class Adapters:
    """The adapters of one model. `layers` are its wrapped linear layers, by name."""

    def __init__(self, wrapped: Any, base: str):
        """wrapped: a PeftModel; base: the recipe's path of the base, which a saved adapter names."""
        self.wrapped, self.base = wrapped, base
        self.model: nn.Module = wrapped.get_base_model()
        self.layers: dict[str, Any] = wrapped_layers(self.model)
        self.quantised = not all(layer.get_base_layer().weight.is_floating_point() for layer in self.layers.values())

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Forwards in the block go through this adapter; None for the base alone.

        peft's own switch would also change which parameters are trained, and read all of them to find the state.
        """
        before = [(layer, layer._disable_adapters, layer._active_adapter) for layer in self.layers.values()]
        for layer in self.layers.values():
            layer._disable_adapters = adapter is None
            layer._active_adapter = [adapter or TRAINED]
        try:
            yield
        finally:
            for layer, disabled, active in before:
                layer._disable_adapters, layer._active_adapter = disabled, active

    def parameters(self, adapter: str) -> list[nn.Parameter]:
        """An adapter's factors: A [rank, in] and B [out, rank] of each layer, in the order of `layers`."""
        return [factor[adapter].weight for layer in self.layers.values() for factor in (layer.lora_A, layer.lora_B)]

    def add_copy(self, name: str, seed: int) -> None:
        """Another adapter, frozen, that begins like the trained one."""
        self.wrapped.add_adapter(name, copy.deepcopy(self.wrapped.peft_config[TRAINED]))
        self._begin(name, seed)
        for parameter in self.parameters(name):
            parameter.requires_grad_(False)

    def plain(self, adapter: str | None, dtype: torch.dtype | None = None) -> nn.Module:
        """The model without wrapped layers: `adapter` merged into them, or None for the base alone; cast to `dtype`
        where that is given. Weights that do not change are the live ones, not copies."""
        return plain_model(self.model, self.layers, adapter, dtype)

    def save(self, folder: Path, values: dict[str, Tensor] | None = None) -> None:
        """The trained adapter as a folder that peft and transformers load. Raises OSError where the disk refuses.

        values: its factors by the names that `model` has for them; None for the live ones.
        """
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self._state(values).items()}, folder / WEIGHTS)
        config = copy.copy(self.wrapped.peft_config[TRAINED])
        config.base_model_name_or_path, config.inference_mode = self.base, True
        config.target_modules = sorted(config.target_modules)
        config.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Set the trained adapter to what `save` wrote. Raises InputError for an adapter of another shape."""
        found, own = load_file(folder / WEIGHTS), self._state()
        if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in own.items()}:
            raise InputError(f"{folder}: its adapter is of another rank or of other layers than student.lora says")
        _peft().set_peft_model_state_dict(self.wrapped, found, adapter_name=TRAINED)

    def _state(self, values: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        given = None if values is None else {f"base_model.model.{name}": value for name, value in values.items()}
        how = {"adapter_name": TRAINED, "save_embedding_layers": False, "state_dict": given}
        return _peft().get_peft_model_state_dict(self.wrapped, **how)

    @torch.no_grad()
    def _begin(self, adapter: str, seed: int) -> None:
        """A is uniform within 1 / sqrt(in), as peft has it, but drawn by the seed and the layer's name; B is 0."""
        for name, layer in self.layers.items():
            factor = layer.lora_A[adapter].weight
            bound = 1 / math.sqrt(factor.shape[1])
            draws = keyed.generator(seed, "lora", name).uniform(-bound, bound, factor.shape)
            factor.copy_(torch.from_numpy(draws))
            layer.lora_B[adapter].weight.zero_()


def attach(model: nn.Module, settings: LoraSettings, base: str, seed: int) -> Adapters:
    """Freeze a model and give its linear layers adapters, float32 unless the model is float64.

    Raises InputError where peft is missing, and for targets that are no linear layers or the output embedding.
    """
    peft = _peft()
    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or 2 * settings.rank,
        lora_dropout=0.0,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    refused = f"student.lora.targets = {targets}"
    _check_names(model, settings, refused)
    try:
        adapters = Adapters(peft.get_peft_model(model, config), base)
    except ValueError as error:
        raise InputError(f"{refused}: {str(error).splitlines()[0]}; name linear layers, or take all-linear") from None
    adapters._begin(TRAINED, seed)
    return adapters


def with_saved(model: nn.Module, folder: str, merge: bool) -> nn.Module:
    """A base with a saved adapter: merged into its weights, or beside them. In place. Raises InputError where peft is
    missing."""
    wrapped = _peft().PeftModel.from_pretrained(model, folder)
    return wrapped.merge_and_unload() if merge else wrapped.get_base_model()


def _check_names(model: Any, settings: LoraSettings, refused: str) -> None:
    """Every named target is there, and none is an embedding: `Policy.head` reads the embedding's own weight, so that
    an adapter on it would be ignored and never trained."""
    if isinstance(settings.targets, str):
        return
    modules, head = dict(model.named_modules()), model.get_output_embeddings()
    for target in settings.targets:
        found = [part for name, part in modules.items() if name == target or name.endswith(f".{target}")]
        if not found:
            linear = sorted({name.split(".")[-1] for name, part in modules.items() if isinstance(part, nn.Linear)})
            raise InputError(f"{refused}: the model has no {target}; its linear layers are {', '.join(linear)}")
        if any(isinstance(part, nn.Embedding) for part in found):
            raise InputError(f"{refused}: {target} is an embedding, not a linear layer; take it out")
        if any(part is head for part in found):
            raise InputError(
                f"{refused}: {target} is the output embedding, whose adapter the loss would not see; take it out"
            )
        if not all(isinstance(part, (nn.Linear, Conv1D)) for part in found):
            raise InputError(f"{refused}: {target} is no linear layer; name those inside it, or take all-linear")


def wrapped_layers(model: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}


def plain_model(
    model: nn.Module, layers: dict[str, Any], adapter: str | None, dtype: torch.dtype | None = None
) -> nn.Module:
    """See `Adapters.plain`. layers: the wrapped ones of the model."""
    inside = {id(p) for layer in layers.values() for p in layer.parameters()}
    others = [p for p in model.parameters() if id(p) not in inside]
    known: dict[int, Any] = {id(p): p if dtype in (None, p.dtype) else _constant(p.to(dtype)) for p in others}
    known |= {id(layer): _plain_layer(layer, adapter, dtype) for layer in layers.values()}
    return copy.deepcopy(model, known)


@torch.no_grad()
def _plain_layer(layer: Any, adapter: str | None, dtype: torch.dtype | None) -> nn.Module:
    """The wrapped layer itself, or a copy with the adapter's product added to its weight."""
    base = layer.get_base_layer()
    dtype = dtype or base.weight.dtype
    if adapter is None and dtype == base.weight.dtype:
        return base
    weight = base.weight
    if adapter is not None:  # rounded once, after the sum
        delta = layer.get_delta_weight(adapter)
        weight = weight.to(torch.promote_types(weight.dtype, delta.dtype)) + delta
    made = copy.copy(base)
    made._parameters = {name: None if p is None else _constant(p.to(dtype)) for name, p in base._parameters.items()}
    made._parameters["weight"] = _constant(weight.to(dtype))
    return made


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise InputError(
            "student.lora: needs the extra `lora`: pip install 'driftgate[lora]', or in a clone "
            ".venv/bin/pip install -e '.[lora]'"
        ) from None
    return peft
