"""A causal LM whose body, head and loss run inside one root module's forward, as sharded training needs.

Shapes: B sequences padded on the right to T; N valid response tokens; H hidden; V vocabulary.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..data.packing import MicroBatch
from ..method.logits import Head
from .head import head_of
from .load import DTYPES
from .lora import TRAINED, Adapters

Result = TypeVar("Result")


class Policy(nn.Module):
    """Wraps a Hugging Face causal LM. The wrapped model stays usable: it is what gets saved and sampled from.

    Dropout is off in every forward, in training too. The same answer must get the same log-probability from the same
    weights, or the ratio to the rollout's would measure the dropout.
    """

    def __init__(self, model: nn.Module, compute: str | None = None, adapters: Adapters | None = None):
        """adapters: those that peft has put into `model`, where it is trained by LoRA."""
        super().__init__()
        self.model = model
        self.compute = compute
        self.adapters = adapters
        self._ask_for_checkpoints(False)
        for layer in self._checkpointing_layers():
            layer.register_forward_pre_hook(_compute_without_dropout)
            layer.register_forward_hook(_ask_again, always_call=True)
        self.vocabulary: int | None = None
        """Ids from here on are padding of the output embedding that the other model lacks; None for no such id."""
        self.stop_group: tuple[int, ...] = ()
        """Ids that end an answer and count as one class in every score and loss; empty where each is its own."""
        self.gather: Callable[[torch.dtype | None, str | None], nn.Module] | None = None
        """Makes a whole copy, cast and with an adapter merged, of weights that are sharded over ranks; None for weights
        that are not."""
        self.works_on: torch.device | None = None
        """Where the forwards run, for weights that wait elsewhere."""

    @property
    def device(self) -> torch.device:
        """Where the forwards run."""
        return self.works_on or self._embedding.device

    @property
    def vocabulary_size(self) -> int:
        """V, without padding."""
        return min(self._embedding.shape[0], self.vocabulary or self._embedding.shape[0])

    @property
    def head(self) -> Head:
        """What makes logits [N, V] of hidden states [N, H]."""
        return head_of(self.model, self.vocabulary, self.stop_group)

    @property
    def _embedding(self) -> Tensor:
        return self.model.get_output_embeddings().weight  # type: ignore[operator, return-value]

    @property
    def wide(self) -> torch.dtype:
        """The dtype of log-probabilities: float32, or float64 for a float64 model."""
        return torch.float64 if self._embedding.dtype == torch.float64 else torch.float32

    def forward(self, batch: MicroBatch, finish: Callable[[Tensor, Head], Result]) -> Result:
        """finish(hidden [N, H], head), where hidden row n is the state that predicts response token n.

        Right padding and causal attention need no mask: no valid token can see what follows it.
        """
        self._ask_for_checkpoints(torch.is_grad_enabled())
        with self.autocast():
            body = self.model.base_model(input_ids=batch.input_ids, use_cache=False)  # type: ignore[operator]
            hidden = body.last_hidden_state.flatten(0, 1)[batch.predicts]
            return finish(hidden, self.head)

    def for_decoding(self) -> nn.Module:
        """The live model; or a copy, where the weights are of another type than `compute`, or sharded over ranks.
        Adapters are merged into the copy, unless the base is in 4 bits: merging would unpack it.

        The copy is made once for a whole rollout. Autocast would cast every weight again at every token.
        """
        self._ask_for_checkpoints(False)
        dtype = None if self.compute is None else DTYPES[self.compute]
        if self.gather is not None:
            return self.gather(dtype, TRAINED if self.adapters else None)
        if self.adapters is not None and not self.adapters.quantised:
            return self.adapters.plain(TRAINED, dtype)
        if dtype in (None, self._embedding.dtype):
            return self.model
        known = {id(p): nn.Parameter(p.detach().to(dtype)) for p in self.model.parameters()}
        return copy.deepcopy(self.model, known)  # type: ignore[arg-type]

    def release(self) -> None:
        """Free weights that a forward without gradient leaves gathered from all ranks."""
        if self.gather is not None:
            cast(Any, self).reshard()  # FSDP2 adds it

    def weights(self) -> dict[str, Any]:
        """Every tensor that decides what the model says, by name."""
        return self.model.state_dict()

    def _ask_for_checkpoints(self, on: bool) -> None:
        """Put the model in evaluation mode. With `on`, layers that have gradient checkpointing enabled will use it."""
        self.model.eval()
        for layer in self._checkpointing_layers():
            layer.asked = layer.training = on and layer.gradient_checkpointing

    def _checkpointing_layers(self) -> list[Any]:
        return [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]

    def autocast(self) -> AbstractContextManager:
        """The context that this model's forwards run in."""
        if self.compute is None:
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.compute])


def _compute_without_dropout(layer: Any, inputs: Any) -> None:
    """Before a layer computes, at first and again in the backward pass: evaluation mode.

    A layer checkpoints only in training mode. It looks at its mode before this hook runs, so that training mode is no
    more than the request for a checkpoint.
    """
    layer.training = False


def _ask_again(layer: Any, inputs: Any, output: Any) -> None:
    """After it: a layer that runs twice, or inside another that is recomputed, makes the same choice each time."""
    layer.training = layer.asked
