"""A rollout batch on its way from the engine to the learner; kept in a checkpoint until nothing needs it any more."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from .experience import Experience

ABOUT = "rollout.json"


@dataclass
class Rollout:
    """The responses of a step, and how much has been found out about them."""

    responses: dict[str, Experience]
    """By whose they are: "student" and, where a term is on them, "reference" and "teacher"."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of writing and scoring."""
    scored: bool = False
    """Whether the teacher, and the initial student where a term is held to it, have scored the responses."""

    def save(self, folder: Path) -> None:
        """Write a folder that `load` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in self.responses.items():
            part.save(folder / f"{name}.safetensors")
        (folder / ABOUT).write_text(json.dumps({"metrics": self.metrics, "scored": self.scored}))

    @classmethod
    def load(cls, folder: Path) -> "Rollout":
        """What `save` wrote."""
        files = sorted(folder.glob("*.safetensors"))
        about = json.loads((folder / ABOUT).read_text())
        return cls({file.stem: Experience.load(file) for file in files}, **about)
