"""Sizes of LoRA adapters: two factors beside each target matrix, A [rank, in] and B [out, rank]."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import StudentSettings
from ..errors import InputError
from .shapes import Shape

ADAPTER_WIDTH = 4
"""Bytes of an adapter's number: adapters are float32, whatever the type of the weights."""


@dataclass(frozen=True)
class Adapters:
    """What is trained instead of the weights."""

    rank: int
    targets: str | Sequence[str] = "all-linear"
    """Names of the linear layers with an adapter, or "all-linear" for all but the output embedding."""

    def parameters(self, shape: Shape) -> int:
        """Numbers in all adapters: rank * (in + out) a matrix. Raises InputError for a target that is not known."""
        return shape.layers * sum(self.rank * (rows + columns) for rows, columns in self._sizes(shape))

    def target_parameters(self, shape: Shape) -> int:
        """Numbers in the matrices that have an adapter. Raises InputError for a target that is not known."""
        return shape.layers * sum(rows * columns for rows, columns in self._sizes(shape))

    def _sizes(self, shape: Shape) -> list[tuple[int, int]]:
        """Sizes of a layer's target matrices."""
        known = matrix_sizes(shape)
        targets = known if self.targets == "all-linear" else self.targets
        if unknown := [name for name in targets if name not in known]:
            raise InputError(
                f"student.lora.targets = {unknown}: the sizes of these layers are not known, so nothing can be "
                f"estimated; name some of {', '.join(known)}"
            )
        return [known[name] for name in targets]


def adapters_of(student: StudentSettings) -> Adapters | None:
    """The adapters that the settings ask for; None where the weights themselves are trained."""
    lora = getattr(student, "lora", None)
    return None if lora is None else Adapters(lora.rank, lora.targets)


def matrix_sizes(shape: Shape) -> dict[str, tuple[int, int]]:
    """(in, out) of each linear layer of a decoder layer, by its name."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "q_proj": (shape.hidden, queries),
        "k_proj": (shape.hidden, keys),
        "v_proj": (shape.hidden, keys),
        "o_proj": (queries, shape.hidden),
        "gate_proj": (shape.hidden, shape.intermediate),
        "up_proj": (shape.hidden, shape.intermediate),
        "down_proj": (shape.intermediate, shape.hidden),
    }
