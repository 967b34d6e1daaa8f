"""The kinds of GPU that an estimate is made for."""

from dataclasses import dataclass

GB = 1e9
"""Bytes."""


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU. Rates are for dense matrices."""

    name: str
    bf16: float
    """bfloat16 operations a second, sums in float32."""
    fp32: float
    """float32 operations a second."""
    bandwidth: float
    """Bytes a second."""
    memory: float
    """Bytes."""


GPUS = (
    Gpu("H200", 989e12, 67e12, 4.8e12, 141 * GB),
    Gpu("H100", 989e12, 67e12, 3.35e12, 80 * GB),
    Gpu("A100", 312e12, 19.5e12, 2.039e12, 80 * GB),
    Gpu("RTX 4090", 165.2e12, 82.6e12, 1.008e12, 24 * GB),
)
"""NVIDIA's data sheets (H200, H100 and A100 80GB as SXM) and the Ada whitepaper (RTX 4090), without sparsity."""
