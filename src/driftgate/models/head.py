"""The output head of a model: what its configuration says of it, and whether the model's own logits agree."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..method.logits import Head

if TYPE_CHECKING:
    from .policy import Policy

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Settings of a model's configuration that bound its logits: Gemma and NanoChat, RecurrentGemma, xLSTM."""
FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Settings that multiply the logits: Cohere, Falcon-H1, Muse."""
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
"""Settings that divide the logits: Granite and MiniCPM3, Inkling."""
MULTIPLIED = ("hyperclovax",)
"""Model types whose `logits_scaling` multiplies."""
LARGE = 100.0
"""Logits of this size show a cap."""


def head_of(model: Any, vocabulary: int | None = None, group: tuple[int, ...] = ()) -> Head:
    """The head of a Hugging Face causal LM, cut to the ids below `vocabulary`; with the bias of its output embedding,
    and the scale and the cap that its configuration names. group: see `Head`."""
    output, (scale, cap) = model.get_output_embeddings(), _named(model)
    bias = getattr(output, "bias", None)
    return Head(output.weight[:vocabulary], None if bias is None else bias[:vocabulary], scale, cap, group)


def _named(model: Any) -> tuple[float, float | None]:
    """Scale and cap."""
    config = model.config.get_text_config()
    values = {name: getattr(config, name, None) for name in (*CAPS, *FACTORS, *DIVISORS)}
    given = {name: float(value) for name, value in values.items() if isinstance(value, (int, float)) and value}
    scale = 1.0
    for name in (*FACTORS, *DIVISORS):
        value = given.get(name, 1.0)
        scale *= value if name in FACTORS or config.model_type in MULTIPLIED else 1 / value
    return scale, next((given[name] for name in CAPS if name in given), None)


@torch.no_grad()
def check_head(policy: "Policy", role: str, path: str) -> None:
    """Require that the model's own logits are those of its `Head`. Raises InputError.

    Measured on one short sequence: for whatever no setting names, and for settings that a model does not follow.
    """
    cause = _cause(policy)
    if cause:
        raise InputError(
            f"{role}.path = {path!r}: {cause}; driftgate computes logits in chunks, as hidden states times output "
            f"embedding, with a bias, a scale and a cap where the configuration names them, and nothing else may lie "
            f"between; choose another model"
        )


def _cause(policy: "Policy") -> str | None:
    """Compares the model's logits with the head's, for hidden states as they are and for large ones, because small
    logits do not show a cap. The latter only where the model runs its output embedding as a module."""
    ids = torch.arange(1, 9, device=policy.device)[None] % policy.vocabulary_size
    body = policy.model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[operator]
    output, head = policy.model.get_output_embeddings(), head_of(policy.model)  # type: ignore[operator]
    largest = float(nn.functional.linear(body, head.weight).abs().max())
    factor = LARGE / largest if largest else 1.0
    hook = output.register_forward_pre_hook(lambda _, inputs: (torch.cat([inputs[0], inputs[0] * factor]),))
    try:
        own = policy.model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    states = torch.cat([body, body * factor]) if len(own) == 2 else body
    found = head.finish_(nn.functional.linear(states, head.weight))
    if own.shape != found.shape:
        return f"its logits have shape {tuple(own[:1].shape)}, those of its output embedding {tuple(found[:1].shape)}"
    return next((cause for pair in zip(own, found) if (cause := _difference(*pair, head))), None)


def _difference(own: Tensor, found: Tensor, head: Head) -> str | None:
    """Of logits [T, V] of the model from those of its head.

    Allowed is 1e-3 of the logits' spread, and one rounding step of each logit. Both sides are made of the same numbers
    in the same type, so that a plain head gives the same bits; a kernel that adds in another order may round
    differently. The step matters for bfloat16, where it is 0.8 % of a logit. In float32 it is negligible. A bias, a
    scale and a cap add a rounding each, and a scale may have rounded the hidden states.
    """
    eps, spread = torch.finfo(found.dtype).eps, float(own.double().std())
    more = 3 * (not head.is_plain)
    allowed = (1e-3 + more * eps) * spread + (1 + more) * eps * found.double().abs()
    gap = (own.double() - found.double()).abs()
    if (gap <= allowed).all():
        return None
    named = ""
    if head.scale != 1 or head.cap is not None:
        named = f", though its configuration names a scale of {head.scale:g} and a cap of {head.cap}"
    return f"its logits are off by up to {float(gap.max()):.3g}, at a spread of {spread:.3g}{named}"
