"""What makes a run repeat itself bit for bit: threads, and on a GPU the deterministic kernels."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..config import TrainConfig
from ..models import load


def prepare_torch(config: TrainConfig) -> torch.device:
    """Set the threads and, on a GPU, what a resumed run needs to repeat itself. Returns the device."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = load.pick_device(config.device)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cuda.enable_cudnn_sdp(False)  # its backward does not repeat itself; flash attention's can
        # that mode also fills every tensor made empty; none is read before it is written
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


@contextmanager
def repeatable_backward() -> Iterator[None]:
    """Attention's backward on a GPU adds in a fixed order only while torch refuses what is not deterministic; where it
    merely warns, as `prepare_torch` sets it, flash attention takes its faster way. The refusal would hit sums of the
    forward pass, so it holds for the backward pass alone."""
    # the second flag alone stays set where deterministic algorithms were turned off again
    if not (torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()):
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)
