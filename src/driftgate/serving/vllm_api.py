"""vLLM's HTTP calls: their addresses, what is sent and what comes back. No other file knows them.

Made for the versions from 0.32 up to, not including, 0.34. These calls move between versions, so others are refused.
Shapes: N rows of a prompt that are scored, K ids of each.
"""

import base64
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .client import LostError, RefusedError, RubbishError, Server

MADE_FOR = (0, 32), (0, 34)
"""The first version, and the first that is too new."""
EXTENSION = "driftgate.serving.vllm_extension.Extension"
"""Loaded into vLLM's workers, takes weights from files."""
BACKEND = {"backend": "driftgate_file"}
SYNC = 600.0
"""Seconds that one call of a weight update may take."""


@dataclass(frozen=True)
class Served:
    """What a server says it is."""

    version: str
    model: str
    context: int
    """Longest prompt and answer together, in tokens."""


@dataclass(frozen=True)
class Answer:
    """One sampled answer."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """In nats, of the whole distribution before temperature and top_p."""
    reason: str
    """"stop", "length", or "abort" for one that was broken off."""
    versions: tuple[str, ...]
    """Of the weights that wrote it, in order; empty where the server does not say."""


def served(server: Server) -> Served:
    """Raises ServerError where there is no such server, and RefusedError for a version that this is not made for."""
    answer = _get(server, "/version")
    version = _field(server, "/version", answer, "version", str)
    if not supported(version):
        low, high = (".".join(map(str, part)) for part in MADE_FOR)
        raise RefusedError(
            server.url, f"is vLLM {version}; driftgate speaks to vLLM from {low} up to, not including, {high}", 200
        )
    models = _field(server, "/v1/models", _get(server, "/v1/models"), "data", list)
    if not models or not isinstance(models[0], dict):
        raise RubbishError(server.url, "/v1/models names no model")
    name = _field(server, "/v1/models", models[0], "id", str)
    return Served(version, name, _field(server, "/v1/models", models[0], "max_model_len", int))


def supported(version: str) -> bool:
    """Whether a version such as 0.32.1 or 0.33.0rc1+cpu is one that this file was made for."""
    try:
        major, minor = (int(word) for word in version.split(".")[:2])
    except ValueError:
        return False
    return MADE_FOR[0] <= (major, minor) < MADE_FOR[1]


def has_dev_mode(server: Server) -> bool:
    """Whether the calls that pause a server and move weights are there. Raises ServerError."""
    try:
        _get(server, "/is_paused")
    except RefusedError as error:
        if error.status in (404, 405):
            return False
        raise
    return True


def generate(
    server: Server,
    prompt: Sequence[int],
    new: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop_ids: Sequence[int] = (),
) -> Answer:
    """One answer of at most `new` tokens, drawn by its own seed, a whole number below 2**31.

    Every parameter is sent: what is left out may be filled in from the model's generation config. Raises ServerError.
    """
    params = {
        "n": 1,
        "max_tokens": new,
        "min_tokens": 0,
        "seed": seed,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": True,
        "stop_token_ids": list(stop_ids),
        "logprobs": 0,
        "detokenize": False,
    }
    return _answer(server, _generate(server, prompt, params))


def prompt_logprobs(server: Server, prompt: Sequence[int], top: int = 0) -> list[dict[int, float]]:
    """What the model says of each token of a prompt but the first: {id: log-probability in nats}, of the `top` most
    probable ids and the prompt's own. Of the distribution at temperature 1. Raises ServerError."""
    answer = _generate(server, prompt, _scoring() | {"prompt_logprobs": top})
    rows = answer.get("prompt_logprobs")
    if not isinstance(rows, list) or len(rows) != len(prompt):
        raise RubbishError(server.url, f"{GENERATE} has no log-probabilities of the prompt")
    try:
        return [{int(id): float(entry["logprob"]) for id, entry in row.items()} for row in rows[1:]]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RubbishError(server.url, f"{GENERATE} has other log-probabilities than expected") from None


def chosen_logprobs(server: Server, prompt: Sequence[int], start: int, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """float32 [N, K]: log-probabilities, in nats, of given ids [N, K] at the prompt's rows from `start`.

    Row i predicts the prompt's token start + i + 1; an id of -1 is padding and gets -inf. Only those rows travel, as
    packed numbers. Raises RefusedError where the server cannot (vLLM can on a GPU alone), ServerError.
    """
    wanted = {"prompt_logprob_token_ids": [list(row) for row in ids], "prompt_logprob_start": start}
    packed = _generate(server, prompt, _scoring() | wanted).get("prompt_token_id_logprobs")
    try:
        values = np.load(io.BytesIO(base64.b64decode(packed or "", validate=True)), allow_pickle=False)
    except (ValueError, EOFError, OSError, TypeError):
        raise RubbishError(server.url, f"{GENERATE} has no packed log-probabilities") from None
    if values.shape != (len(ids), len(ids[0])):
        raise RubbishError(
            server.url, f"{GENERATE} has log-probabilities of shape {values.shape}, asked were {len(ids)} rows"
        )
    return values


def knows_id(server: Server, id: int) -> bool:
    """Whether an id is in the model's vocabulary. Raises ServerError."""
    try:
        _generate(server, [id], _scoring())
    except RefusedError:
        return False
    return True


def model_shape(server: Server) -> dict[str, Any]:
    """Settings of the served model's configuration, by name, as driftgate's extension says them. Raises RefusedError
    where it is not loaded, ServerError."""
    try:
        answer = server.post("/collective_rpc", {"method": "driftgate_model"}, server.limits.connect)
    except LostError as error:
        raise RefusedError(server.url, error.what, 500) from None  # a method that is not there answers 500
    results = _field(server, "/collective_rpc", _object(server, "/collective_rpc", answer), "results", list)
    return _object(server, "/collective_rpc", results[0] if results else None)


def begin_transfer(server: Server) -> None:
    """Once for a server that was started, before its first `load_weights`. Raises ServerError."""
    _post(server, "/init_weight_transfer_engine", {"init_info": {}}, SYNC)


def load_weights(server: Server, file: str, version: str, wait: float) -> None:
    """Load a safetensors file that the server can read, with Hugging Face names, while nothing is decoded.

    wait: seconds until what is being decoded has ended. The pause also empties the cache of prompts, which would
    survive the update. Raises ServerError; a server where an update has failed midway has to be started again.
    """
    _post(server, "/pause?mode=wait", None, wait)
    _post(server, "/start_weight_update", None, SYNC)
    _post(server, "/update_weights", {"update_info": {"path": file}}, SYNC)
    _post(server, "/finish_weight_update", {"weight_version": version}, SYNC)
    _post(server, "/resume", None, SYNC)


def weight_version(server: Server) -> str:
    """The version of the last update; "default" for a server without one. Raises ServerError."""
    return str(_field(server, "/weight_info", _get(server, "/weight_info"), "weight_version", str))


def abort_all(server: Server) -> None:
    """Break off all that is being decoded. Raises ServerError."""
    _post(server, "/abort_requests", {}, server.limits.connect)


def start_command(python: str | None, model: str, port: int, dtype: str, seats: int) -> list[str]:
    """Starts a server of a model folder on this machine. python: that has vLLM; None for this one. seats: answers at
    once."""
    words = [python or sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    words += ["--served-model-name", "policy", "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    words += ["--max-num-seqs", str(seats), "--max-logprobs", "-1", "--enable-scale-out", "--generation-config", "vllm"]
    return [*words, "--worker-extension-cls", EXTENSION, "--weight-transfer-config", json.dumps(BACKEND)]


def start_environment() -> dict[str, str]:
    """Variables that such a server needs: dev mode, and where the extension is."""
    places = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    path = os.pathsep.join(dict.fromkeys(place for place in places if place))
    return {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": path}


GENERATE = "/inference/v1/generate"


def _scoring() -> dict[str, Any]:
    """One token has to be decoded, also where only the prompt is of interest."""
    return {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "ignore_eos": True, "detokenize": False}


def _generate(server: Server, prompt: Sequence[int], params: Mapping[str, Any]) -> dict[str, Any]:
    answer = server.post(GENERATE, {"token_ids": list(prompt), "sampling_params": dict(params)})
    return _object(server, GENERATE, answer)


def _answer(server: Server, content: Mapping[str, Any]) -> Answer:
    try:
        [choice] = content["choices"]
        ids = tuple(int(id) for id in choice["token_ids"] or ())
        entries = (choice["logprobs"] or {}).get("content") or ()
        logprobs = tuple(float(entry["logprob"]) for entry in entries)
        reason = str(choice["finish_reason"])
        versions = tuple(str(span["version"]) for span in choice.get("weight_versions") or ())
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RubbishError(server.url, f"{GENERATE} answers other fields than expected") from None
    if len(ids) != len(logprobs) or (not ids and reason != "abort"):
        raise RubbishError(server.url, f"{GENERATE} answers {len(ids)} tokens and {len(logprobs)} log-probabilities")
    return Answer(ids, logprobs, reason, versions)


def _get(server: Server, path: str) -> Any:
    return _object(server, path, server.get(path, server.limits.connect))


def _post(server: Server, path: str, body: Mapping[str, Any] | None, timeout: float) -> None:
    server.post(path, body, timeout)


def _object(server: Server, path: str, answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise RubbishError(server.url, f"{path} answers {str(answer)[:40]!r}, not an object")
    return answer


def _field(server: Server, path: str, answer: Mapping[str, Any], name: str, kind: type) -> Any:
    value = answer.get(name)
    if not isinstance(value, kind):
        raise RubbishError(server.url, f"{path} has no {name}")
    return value
