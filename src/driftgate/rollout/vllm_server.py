"""An engine whose responses are written by servers of vLLM, which get the student's weights before each rollout."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .. import keyed
from ..config.engine import VLLMSettings
from ..data.response import Response
from ..errors import InputError, RunError
from ..models.policy import Policy
from ..models.save import plain_weights
from ..serving import vllm_api
from ..serving.client import Limits, LostError, RefusedError, Server, ServerError
from ..serving.pool import Servers
from ..serving.start import StartedServer
from .engine import Request, Sampling
from .probe import Probe, probe_of

SEEDS = 2**31 - 1
"""vLLM's seeds are below it."""


@dataclass(frozen=True)
class Sync:
    """What servers are given: whole tensors by their Hugging Face names, and the probe of these weights."""

    weights: dict[str, Tensor]
    probe: Probe

    @classmethod
    def of(cls, policy: Policy, context: int, tolerance: float | None) -> "Sync":
        """Gathered from all ranks, adapters merged; every rank has to call this."""
        return cls(plain_weights(policy), probe_of(policy, context, tolerance))


class VLLMEngine:
    """Talks to the servers at `urls`. `alive` in its pool are those in use.

    Every answer has a seed of its own, made of its key; so an answer that has to be asked for again comes out the same
    where the server's arithmetic does.
    """

    concurrent = True
    """Whether `generate` may run while the student is trained: it uses neither the policy nor the ranks."""

    def __init__(
        self,
        settings: VLLMSettings,
        urls: Sequence[str],
        model: Any,
        folder: Path,
        started: StartedServer | None = None,
    ):
        """model: the student's configuration. folder: for the file of weights. started: the server among them that is
        to be ended. Raises InputError for servers that cannot serve this student."""
        self.started = started
        limits = Limits(answer=settings.timeout, lost=settings.patience)
        self.settings, self.folder = settings, Path(settings.weights or folder).absolute()
        self.servers = Servers(urls, limits, settings.concurrency, self._revive, vllm_api.abort_all)
        self.contexts = {server.url: check_server(server, model) for server in self.servers.servers}
        self.context = min(self.contexts.values())
        self.version, self.probe, self.before = 0, None, None
        self.run = uuid4().hex[:8]
        """Tells the weights of this engine from those that another run gives to the same servers."""

    @property
    def file(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def label(self) -> str:
        """Of the weights, as the servers say it."""
        return f"{self.run}-{self.version}"

    def check_room(self, longest: int, new: int) -> None:
        """Raises InputError where prompt and answer do not fit: vLLM would cut the answer and not say so."""
        for url, context in self.contexts.items():
            if longest + new > context:
                raise InputError(
                    f"{url}: its context is {context} tokens, but a prompt of {longest} and an answer of {new} need "
                    f"{longest + new}; start it with --max-model-len {longest + new}, or lower max_new_tokens"
                )

    def load(self, policy: Policy, version: int) -> None:
        """Give the weights to all servers and probe them, but for those that are lost. Raises ServerError, RunError."""
        self.send(Sync.of(policy, self.context, self.settings.tolerance), version)

    def send(self, sync: Sync, version: int) -> None:
        """The same, of what `Sync.of` has made."""
        self._write(sync.weights)
        self.before, self.probe, self.version = self.probe, sync.probe, version
        living = self.servers.living()
        with ThreadPoolExecutor(max(1, len(living))) as pool:
            for server, error in zip(living, pool.map(self._synced, living)):
                if isinstance(error, LostError):
                    self.servers.lose(server)
                elif error is not None:
                    raise error

    def close(self) -> None:
        """End the server that was started for this engine, and remove the file of weights."""
        self.file.unlink(missing_ok=True)
        with suppress(OSError):  # others may keep something there
            self.folder.rmdir()
        if self.started is not None:
            self.started.close()

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, advance: Callable[[int], None] | None = None
    ) -> list[list[Response]]:
        """See `Engine.generate`. Raises ValueError for a budget, ServingError where no server is left."""
        if sampling.budget:
            raise ValueError(f"budget = {sampling.budget} nats: a server draws from the student alone")
        jobs = [(request.prompt, key) for request in requests for key in request.keys]

        def work(server: Server, job: tuple[tuple[int, ...], tuple[int | str, ...]]) -> Response:
            return self._response(server, *job, sampling)

        flat = iter(self.servers.run(jobs, work, advance or (lambda count: None)))
        return [[next(flat) for _ in request.keys] for request in requests]

    def _response(
        self, server: Server, prompt: tuple[int, ...], key: tuple[int | str, ...], sampling: Sampling
    ) -> Response:
        seed = int(keyed.generator(*key).integers(SEEDS))
        how = sampling.temperature, sampling.top_p, sampling.stop_ids
        answer = vllm_api.generate(server, prompt, sampling.max_new_tokens, seed, *how)
        if strange := set(answer.versions) - {self.label}:
            raise LostError(
                server.url,
                f"an answer is by the weights {min(strange)}, not {self.label}; do two runs use this server?",
            )
        if answer.reason not in ("stop", "length"):
            raise LostError(server.url, f"has broken an answer off ({answer.reason})")
        if answer.reason == "length" and len(answer.ids) < sampling.max_new_tokens:
            raise ServerError(
                server.url,
                f"an answer was cut after {len(answer.ids)} of {sampling.max_new_tokens} tokens; start "
                f"it with a larger --max-model-len",
            )
        self._check_ids(server, answer.ids)
        return Response(answer.ids, answer.logprobs, answer.reason == "stop", version=self.version)

    def _check_ids(self, server: Server, ids: Sequence[int]) -> None:
        """The server draws from all rows of the output embedding, also from those that the teacher lacks."""
        assert self.probe is not None
        size = len(self.probe.next)
        if max(ids) >= size:
            raise ServerError(
                server.url,
                f"has drawn the token {max(ids)}, but student and teacher share {size} only; take a student whose "
                f"output embedding has no more rows than the teacher's, or rollout.engine=hf",
            )

    def _write(self, weights: dict[str, Tensor]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.file.with_suffix(".partial")
            save_file({name: value.contiguous() for name, value in weights.items()}, partial)
            partial.replace(self.file)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"rollout.engine.weights = {self.folder}: cannot be written to ({error}); choose another folder"
            ) from None

    def _synced(self, server: Server) -> ServerError | None:
        """Give a server the weights and probe it. Returns what went wrong."""
        assert self.probe is not None
        try:
            vllm_api.begin_transfer(server)
            self.probe.ask(server)
            vllm_api.load_weights(server, str(self.file), self.label, self.settings.timeout)
            if (found := vllm_api.weight_version(server)) != self.label:
                raise ServerError(
                    server.url,
                    f"after the sync it says that its weights are {found!r}, not {self.label!r}; start it again, and "
                    f"let no other run use it",
                )
            self.probe.check(server, self.before)
        except ServerError as error:
            return error
        return None

    def _revive(self, server: Server) -> None:
        """A server that was lost is there again, maybe a new one."""
        if self.probe is not None and (error := self._synced(server)) is not None:
            raise error


def check_server(server: Server, model: Any) -> int:
    """The longest sequence of a server, in tokens. Raises InputError for one that cannot serve this student."""
    try:
        found = vllm_api.served(server)
        if not vllm_api.has_dev_mode(server):
            raise InputError(
                f"{server.url}: takes no weights, as its dev mode is off; start it with VLLM_SERVER_DEV_MODE=1"
            )
        _check_model(server, model.get_text_config())
        vllm_api.generate(server, [0], 1, 0)
    except RefusedError as error:
        raise InputError(f"{error}; see docs/servers.md for how to start one") from None
    except ServerError as error:
        raise InputError(f"{error}; start vLLM at this address, see docs/servers.md, or give another") from None
    return found.context


def _check_model(server: Server, config: Any) -> None:
    """The server's model has the student's shape."""
    with suppress(RefusedError):
        served = vllm_api.model_shape(server)
        for name, value in served.items():
            own = getattr(config, name, None)
            if own != value:
                raise InputError(
                    f"{server.url}: serves another model: its {name} is {value}, the student's is {own}; start it with "
                    f"the student's folder"
                )
        return
    raise InputError(
        f"{server.url}: does not know driftgate's extension; start it with --worker-extension-cls "
        f"{vllm_api.EXTENSION}, see docs/servers.md"
    )
