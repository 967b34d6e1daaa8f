"""What writes the samples of an evaluation: this process, or the servers of its settings."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..config.exam import ExamSettings
from ..models.policy import Policy
from ..rollout.choose import served_engine
from ..rollout.engine import Engine
from ..rollout.hf import HFEngine
from ..rollout.vllm_server import VLLMEngine
from .batch import EXAM_ROWS_LIMIT, fitting_batch


class Writer(ExitStack):
    """A context manager around an evaluation. Servers get the model when they are first needed."""

    def __init__(self, policy: Policy, path: str, settings: ExamSettings, out: Path | None):
        """path: of the model, for a server that is started. out: of the evaluation; None for a folder that passes."""
        super().__init__()
        self.policy, self.path, self.settings, self.out = policy, path, settings, out
        self.served: VLLMEngine | None = None

    def batch(self, positions: int) -> int:
        """Responses of one part, each of at most `positions` tokens with its prompt."""
        if self.settings.batch:
            return self.settings.batch
        return fitting_batch(self.policy, positions) if self.settings.engine.kind == "hf" else EXAM_ROWS_LIMIT

    def engine(self, longest: int, new: int, batch: int) -> Engine:
        """For prompts of at most `longest` and answers of at most `new` tokens. Raises InputError for servers that
        cannot serve this model, ServingError where they do not say what it says."""
        if self.settings.engine.kind == "hf":
            return HFEngine(self.policy, batch)
        if self.served is None:
            self.served = self._made(self.settings.engine)
        self.served.check_room(longest, new)
        return self.served

    def _made(self, settings: Any) -> VLLMEngine:
        folder = self.out or Path(self.enter_context(tempfile.TemporaryDirectory()))
        engine = served_engine(settings, self.policy, self.path, folder)
        self.callback(engine.close)
        engine.load(self.policy, 0)
        return engine
