"""The base of a LoRA student, or another adapter on it, as a model of its own without a copy of the weights."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..data.packing import MicroBatch
from ..method.logits import Head
from .load import DTYPES
from .policy import Policy

Result = TypeVar("Result")


class AdapterView(Policy):
    """The student's model under another adapter, or none.

    It lists no parameters: they are the student's, and nothing may freeze or move them through a view.
    """

    student: Policy

    def __init__(self, student: Policy, adapter: str | None):
        """adapter: its name in the student's `Adapters`; None for the base alone, which is the initial student."""
        nn.Module.__init__(self)
        # not as submodules, so that they are not listed
        object.__setattr__(self, "student", student)
        object.__setattr__(self, "model", student.model)
        assert student.adapters is not None
        self.adapters, self.adapter = student.adapters, adapter
        self.compute, self.vocabulary, self.stop_group = student.compute, student.vocabulary, student.stop_group
        self.gather, self.works_on = None, None

    @property
    def device(self) -> torch.device:
        return self.student.device

    def forward(self, batch: MicroBatch, finish: Callable[[Tensor, Head], Result]) -> Result:
        """See `Policy.forward`. It goes through the student, so that whatever wraps the student's forward holds."""
        with self.adapters.using(self.adapter):
            return self.student(batch, finish)

    def for_decoding(self) -> nn.Module:
        """A plain model: with the adapter merged, or the base itself."""
        self._ask_for_checkpoints(False)
        dtype = DTYPES[self.compute] if self.compute else None
        if self.student.gather is not None:
            return self.student.gather(dtype, self.adapter)
        return self.adapters.plain(self.adapter, dtype)

    def release(self) -> None:
        self.student.release()

    def weights(self) -> dict[str, Any]:
        """By the names that they have in a model without adapters."""
        with torch.no_grad():
            return self.adapters.plain(self.adapter).state_dict()
