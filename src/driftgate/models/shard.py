"""A policy sharded over ranks by torch's FSDP2: each keeps a share of every parameter and gathers a layer at a time.

Gradients are added up over the ranks, not averaged: the learner divides once, by the denominator of the whole batch.
"""

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from .lora import plain_model, wrapped_layers
from .policy import Policy


def all_ranks(device: torch.device) -> DeviceMesh:
    """The mesh of all ranks, on their devices of this type."""
    return init_device_mesh(device.type, (dist.get_world_size(),))


def shard(policy: Policy, mesh: DeviceMesh, keep_head: bool = False, offload: bool = False) -> None:
    """Shard a policy that every rank holds whole, on the CPU; the shards move to the mesh's device.

    mesh: one dimension, all ranks. keep_head: leave the output head whole on every rank, for a divergence over the
    vocabulary, which reads it outside the policy's own forward. offload: keep the shards in the computer's memory; a
    layer comes to the GPU when it is gathered.
    """
    outline = outline_of(policy.model)
    policy.works_on = device_of(mesh)
    policy.gather = lambda dtype, adapter: whole_copy(policy, outline, dtype, adapter)
    kept = set(policy.model.get_output_embeddings().parameters()) if keep_head else set()  # type: ignore[operator]
    how: Any = {"mesh": mesh, "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy()}
    for layer in layers_of(policy.model):
        fully_shard(layer, **how)
    fully_shard(policy, ignored_params=kept, **how)
    for weight in kept:
        weight.data = weight.data.to(mesh.device_type)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other way to leave the sum undivided
            module.set_gradient_divide_factor(1.0)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The decoder layers: the longest list of modules in the body."""
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList)]  # type: ignore[union-attr, operator]
    return list(max(lists, key=len, default=nn.ModuleList()))


def outline_of(model: nn.Module) -> nn.Module:
    """The same modules without the numbers: parameters on the meta device, buffers as they are."""
    empty = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, empty)  # type: ignore[arg-type]


@torch.no_grad()
def whole_copy(policy: Policy, outline: nn.Module, dtype: torch.dtype | None, adapter: str | None) -> nn.Module:
    """A plain model with the weights of all ranks, cast to `dtype` where given, an adapter merged. Every rank has to
    call this."""
    policy.release()
    cast = None if policy.adapters else dtype  # adapters are merged in their own type, then cast
    empty, memo = dict(outline.named_parameters()), {}
    for name, parameter in policy.model.named_parameters():
        value = whole_tensor(parameter.detach())
        memo[id(empty[name])] = nn.Parameter(value.to(cast or value.dtype), requires_grad=False)
    model = copy.deepcopy(outline, memo).to(policy.device)
    return plain_model(model, wrapped_layers(model), adapter, dtype) if policy.adapters else model


def whole_tensor(value: Tensor) -> Tensor:
    """All of a tensor that may be sharded. Every rank has to call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def device_of(mesh: DeviceMesh) -> torch.device:
    """This rank's."""
    on_gpu = mesh.device_type == "cuda"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device(mesh.device_type)
