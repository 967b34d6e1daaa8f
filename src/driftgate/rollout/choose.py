"""The engine that the settings ask for, with the server that it starts."""

from pathlib import Path

from ..config.engine import VLLMSettings
from ..errors import InputError
from ..models.policy import Policy
from ..models.sources import adapter_base, resolve
from ..serving.start import StartedServer, free_port
from ..serving.vllm_api import start_command, start_environment
from .probe import is_narrow
from .vllm_server import VLLMEngine


def whole_model(path: str) -> str:
    """A folder that a server can load: of an adapter, its base."""
    folder = resolve(path, "student")
    base = adapter_base(folder)
    return folder if base is None else whole_model(base)


def served_engine(settings: VLLMSettings, policy: Policy, path: str, folder: Path) -> VLLMEngine:
    """path: the student's, for a server that is started. folder: of the run; its log and the file of weights are there.

    Raises InputError for servers that cannot serve this student, and for one that does not start.
    """
    if not all(parameter.is_floating_point() for parameter in policy.model.parameters()):
        raise InputError(f"{path}: its weights are in 4 bits, which servers are not sent; let this process write")
    weights = folder / "weights"
    if settings.start is None:
        return VLLMEngine(settings, settings.urls, policy.model.config, weights)
    how, port = settings.start, settings.start.port or free_port()
    dtype = "bfloat16" if is_narrow(policy) else "float32"
    command = start_command(how.python, whole_model(path), port, dtype, settings.concurrency)
    environment = start_environment() | how.environment
    started = StartedServer([*command, *how.arguments], environment, folder / "vllm.log", how.restarts)
    try:
        url = f"http://127.0.0.1:{port}"
        started.wait_ready(url, how.ready)
        return VLLMEngine(settings, [url], policy.model.config, weights, started)
    except BaseException:
        started.close()
        raise
