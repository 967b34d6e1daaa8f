"""A causal LM whose body, head and loss run inside one root module's forward, as sharded training needs.

Shapes: B sequences padded on the right to T; N valid response tokens; H hidden; V vocabulary.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..data.packing import MicroBatch
from ..errors import InputError
from .load import DTYPES

Result = TypeVar("Result")


class Policy(nn.Module):
    """Wraps a Hugging Face causal LM; the wrapped model stays usable (and is what gets saved and sampled from)."""

    def __init__(self, model: nn.Module, compute: str | None = None):
        super().__init__()
        self.model = model.eval()
        self.compute = compute
        self.vocabulary: int | None = None
        """Ids from here on are padding of the output embedding that the other model lacks; None for no such id."""

    @property
    def device(self) -> torch.device:
        return self.head.device

    @property
    def head(self) -> Tensor:
        """[V, H]: logits are hidden @ head.T."""
        return self.model.get_output_embeddings().weight[: self.vocabulary]  # type: ignore[operator, index]

    @property
    def wide(self) -> torch.dtype:
        """The dtype of log-probabilities: float32, or float64 for a float64 model."""
        return torch.float64 if self.head.dtype == torch.float64 else torch.float32

    def forward(self, batch: MicroBatch, finish: Callable[[Tensor, Tensor], Result]) -> Result:
        """finish(hidden [N, H], head [V, H]), where hidden row n is the state that predicts response token n.

        Right padding and causal attention need no mask: no valid token can see what follows it.
        """
        self._recompute_activations(torch.is_grad_enabled())
        with self.autocast():
            body = self.model.base_model(input_ids=batch.input_ids, use_cache=False)  # type: ignore[operator]
            hidden = body.last_hidden_state.flatten(0, 1)[batch.predicts]
            return finish(hidden, self.head)

    def for_decoding(self) -> nn.Module:
        """The live model; where products run in another type than the weights, a copy cast once for a whole rollout.

        Autocast would cast every weight again at every token.
        """
        self._recompute_activations(False)
        if self.compute is None or DTYPES[self.compute] == self.head.dtype:
            return self.model
        cast = {id(p): nn.Parameter(p.detach().to(DTYPES[self.compute])) for p in self.model.parameters()}
        return copy.deepcopy(self.model, cast)  # type: ignore[arg-type]

    def _recompute_activations(self, on: bool) -> None:
        """Layers checkpoint in training mode only, which sampling must not be in; dropout stays out of it for good."""
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = on

    def autocast(self) -> AbstractContextManager:
        """The context that this model's forwards run in."""
        if self.compute is None:
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.compute])


@torch.no_grad()
def check_head(policy: Policy, role: str, path: str) -> None:
    """Require that the model's own logits are body @ head (no bias, no capping, no scaling). Raises InputError.

    Compares on one short sequence, relative to the logits' own spread.
    """
    ids = torch.arange(1, 9, device=policy.device)[None] % policy.head.shape[0]
    own = policy.model(input_ids=ids, use_cache=False).logits.double()
    body = policy.model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[operator]
    ours = (body @ policy.head.T).double()
    if own.shape != ours.shape or (own - ours).abs().max() > 0.05 * own.std():
        raise InputError(
            f"{role}.path = {path!r}: its logits are not hidden states times its output embedding (a bias, a cap or "
            f"a scale lies between), which driftgate cannot split over chunks; choose a model with a plain head"
        )
