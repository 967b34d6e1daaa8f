"""Block64 drift gates in verl's supervised top-K distillation: the loss mode "gated_forward_kl_topk".

Made for verl 0.9.1. Copy this file to where the workers import it from, and set for all of them

    VERL_USE_EXTERNAL_MODULES=verl_gate

then `distillation.distillation_loss.loss_mode=gated_forward_kl_topk`. With transformers as verl pins it, install
driftgate by `pip install --no-deps driftgate`: the functions used here need torch and numpy only.

A loss of verl sees one micro-batch of one rank, so the gates have mean 1 over each response, not over the whole
optimiser batch. `old_log_probs` must be the trainer's own forward before the updates, so leave the rollout correction's
`bypass_mode` off.
"""

from typing import Any

import torch
from verl.trainer.distillation.losses import (
    DistillationLossSettings,
    get_distillation_loss_fn,
    register_distillation_loss,
)
from verl.workers.utils.padding import no_padding_2_padding

from driftgate import drift_gate, fixed_spans, unit_mean

TAU, SIZE = 5.0, 64
"""How steep the gate is, and the tokens of a block: the paper's."""


def gates_of(logp: torch.Tensor, old_logp: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The gate of each token, with mean 1 over each response; 0 outside the mask.

    logp, old_logp: log-probabilities of the tokens now and before the updates, [B, R]; mask: bool [B, R]. Detached.
    """
    rows = mask.nonzero()[:, 0]
    gates = drift_gate(logp[mask].detach(), old_logp[mask], fixed_spans(rows, SIZE), TAU)
    whole = torch.zeros(mask.shape, dtype=gates.dtype, device=gates.device)
    whole[mask] = unit_mean(gates, rows)
    return whole


def _padded(values: torch.Tensor) -> torch.Tensor:
    return values.to_padded_tensor(0) if values.is_nested else values


@register_distillation_loss(DistillationLossSettings(names=["gated_forward_kl_topk"], use_topk=True))
def gated_forward_kl_topk(
    config: Any, distillation_config: Any, model_output: dict[str, Any], data: Any
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's own losses [B, R], each times its gate; verl's metrics, and three of the gate."""
    plain = get_distillation_loss_fn("forward_kl_topk")
    losses, metrics = plain(
        config=config, distillation_config=distillation_config, model_output=model_output, data=data
    )
    mask = _padded(data["response_mask"]).bool()
    logp = no_padding_2_padding(model_output["log_probs"], data)
    gates = gates_of(logp, _padded(data["old_log_probs"]), mask)
    seen = gates[mask]
    told = {"gate_min": seen.min().item(), "gate_max": seen.max().item(), "gate_std": seen.std(correction=0).item()}
    return losses * gates, metrics | {f"distillation/{name}": value for name, value in told.items()}
