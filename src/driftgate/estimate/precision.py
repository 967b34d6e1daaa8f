"""Bytes of a number, by the type of weights and of matrix products."""

from ..config import ModelSettings

NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float64": 8}


def weight_width(settings: ModelSettings) -> int:
    """Bytes of a stored weight."""
    return NUMBER_BYTES[settings.dtype]


def product_width(settings: ModelSettings) -> int:
    """Bytes of an operand of the matrix products."""
    return NUMBER_BYTES[settings.compute or settings.dtype]
