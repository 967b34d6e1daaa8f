"""What writes rollouts: this process, or servers."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from ..settings import Settings
from .shorthand import by_kind


class HFSettings(Settings):
    """Hugging Face models in this process, on the live weights."""

    kind: Literal["hf"] = "hf"


class StartSettings(Settings):
    """A server that the run starts beside itself and ends with itself. It loads the student's own folder."""

    python: str | None = None
    """The Python that has vLLM, such as /venvs/vllm/bin/python; null takes the one that runs this."""
    port: Annotated[int, Field(gt=0, lt=65536)] | None = None
    """Null takes a free one."""
    arguments: tuple[str, ...] = ()
    """More words of the server's command line, such as [--gpu-memory-utilization, "0.4"]."""
    environment: dict[str, str] = Field(default={})
    """More variables of its environment, such as {CUDA_VISIBLE_DEVICES: "1"}."""
    ready: PositiveFloat = 600.0
    """Seconds until it has to be ready. Its log is vllm.log in the run folder."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """Times that it is started again after it died."""


class VLLMSettings(Settings):
    """Servers of vLLM, see docs/servers.md. Each gets the student's weights before a rollout and is probed."""

    kind: Literal["vllm"]
    urls: tuple[str, ...] = ()
    """Addresses of servers that run, such as [http://10.0.0.5:8000]; give these or `start`."""
    start: StartSettings | None = None
    """Start one server; {} takes the defaults. Null uses `urls`."""
    concurrency: PositiveInt = 64
    """Answers that a server works on at once."""
    timeout: PositiveFloat = 1800.0
    """Seconds that one answer may take before its server counts as dead."""
    patience: PositiveFloat = 600.0
    """Seconds that a run waits when no server is left; then it stops with a checkpoint."""
    weights: str | None = None
    """Folder of the file through which servers get the weights; all must see it under this path. In memory, such as
    /dev/shm/mine, is fast on one machine. Null takes the folder `weights` of the run folder."""
    tolerance: PositiveFloat | None = None
    """Largest difference, in nats, between a server's log-probability and the trainer's after a sync; null takes 0.001
    for a student in float32 and 0.1 in bfloat16."""

    @model_validator(mode="after")
    def _servers(self) -> "VLLMSettings":
        if bool(self.urls) == (self.start is not None):
            raise ValueError(
                "kind = vllm needs urls or start, one of the two; give urls=[http://127.0.0.1:8000], or start={}"
            )
        return self


EngineSettings = Annotated[Annotated[HFSettings | VLLMSettings, Field(discriminator="kind")], BeforeValidator(by_kind)]
