"""A small server that speaks vLLM's JSON and answers with a real model, and that can misbehave in many ways."""

import base64
import io
import json
import os
import socket
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from driftgate.models.policy import Policy
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine

DEV = ("/pause", "/resume", "/is_", "/start_", "/update_", "/finish_", "/init_", "/weight_", "/abort_", "/collective_")


class FakeVLLM:
    """A context manager: a server on 127.0.0.1 with the model of a folder. Change its attributes at any time.

    fault: None, or what it does wrong. "hang": no answer; "500"; "rubbish": HTML; "fields": JSON of other names;
    "stale": an update changes nothing; "head": an update leaves the output embedding as it was; "cache": after an
    update, prompts that it has seen are answered by the old weights; "version": an update keeps the version;
    "abort": answers are broken off. `fault_path`: the paths that the fault is for.
    """

    def __init__(self, folder, context=256, version="0.32.0", dev_mode=True, chosen=True):
        self.folder, self.context, self.version = folder, context, version
        self.dev_mode, self.chosen, self.extension = dev_mode, chosen, True
        self.fault, self.fault_path = None, ""
        self.die_after = None
        """Generate requests until it dies in the middle of the next one."""
        self.asked = []
        """(path, body) of every request."""
        self.paused = False
        self.release = threading.Event()
        self.changed = threading.Condition()
        self.lock = threading.Lock()
        self.port = 0

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.die()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def count(self, path):
        return sum(asked.startswith(path) for asked, _ in self.asked)

    def wait_for(self, path, count=1, timeout=20):
        """Wait until so many requests for a path have come."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.count(path) >= count, timeout), f"no {count} requests for {path}"

    def start(self):
        """From nothing: the weights of the folder, and no update seen."""
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        self.old, self.seen, self.weights, self.updating = None, set(), "default", False
        self.connections = set()
        self.release.clear()
        fake = self

        class Handler(_Handler):
            server_of_tests = fake

        self.http = _Quiet(("127.0.0.1", self.port), Handler)
        self.port = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def die(self):
        """Like kill -9: connections break, the address refuses."""
        if self.http is None:
            return
        self.release.set()
        self.http.shutdown()
        self.http.server_close()
        self.http = None
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def answer(self, path, body):
        """(status, content) of a request."""
        with self.changed:
            self.asked.append((path, body))
            self.changed.notify_all()
        fault = self.fault if path.startswith(self.fault_path) else None
        if fault == "hang":
            self.release.wait()
        if fault == "500":
            return 500, {"error": {"message": "EngineCore encountered an issue", "code": 500}}
        if fault == "rubbish":
            return 200, "<html>hello</html>"
        if fault == "fields":
            return 200, {"hello": 1}
        if path.startswith(DEV) and not self.dev_mode:
            return 404, {"detail": "Not Found"}
        name = path.partition("?")[0].strip("/").replace("/", "_")
        if name == "health":  # however busy the model is
            return 200, ""
        with self.lock:
            return getattr(self, f"on_{name}", self.missing)(body or {})

    def missing(self, body):
        return 404, {"detail": "Not Found"}

    def on_version(self, body):
        return 200, {"version": self.version}

    def on_v1_models(self, body):
        return 200, {"data": [{"id": "policy", "max_model_len": self.context}]}

    def on_is_paused(self, body):
        return 200, {"is_paused": self.paused}

    def on_pause(self, body):
        self.paused = True
        return 200, {"status": "paused"}

    def on_resume(self, body):
        self.paused = False
        return 200, {"status": "resumed"}

    def on_abort_requests(self, body):
        return 200, {"status": "aborted", "aborted": 0}

    def on_init_weight_transfer_engine(self, body):
        return 200, {"message": "Weight transfer initialized"}

    def on_collective_rpc(self, body):
        if not self.extension:
            return 500, {"error": {"message": "Call to collective_rpc method failed: no attribute 'driftgate_model'"}}
        config = self.model.config
        names = "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings"
        return 200, {"results": [{name: getattr(config, name) for name in names}]}

    def on_start_weight_update(self, body):
        if self.updating:
            return 500, {"error": {"message": "start_weight_update called while a weight update is already active"}}
        self.updating = True
        return 200, {"message": "Weight update started"}

    def on_update_weights(self, body):
        if not self.updating:
            return 500, {"error": {"message": "update_weights called before start_weight_update"}}
        if self.fault != "stale":
            self.load(load_file(body["update_info"]["path"]))
        return 200, {"message": "Weights updated"}

    def load(self, values):
        old = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.old = self.model if self.fault == "cache" or not self.paused else None
        if self.old is not None:
            self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        if self.fault == "head":
            self.model.config.tie_word_embeddings = False
            self.model.lm_head.weight = torch.nn.Parameter(old["lm_head.weight"])
            values = {name: value for name, value in values.items() if name != "lm_head.weight"}
        missing, unknown = self.model.load_state_dict(values, strict=False)
        assert not unknown, unknown
        assert set(missing) <= {"lm_head.weight"}, missing

    def on_finish_weight_update(self, body):
        self.updating = False
        if self.fault != "version":
            self.weights = body["weight_version"]
        return 200, {"message": "Weight update finished"}

    def on_weight_info(self, body):
        return 200, {"weight_version": self.weights}

    def on_inference_v1_generate(self, body):
        if self.die_after is not None:
            self.die_after -= 1
            if self.die_after < 0:
                self.die_after = None
                threading.Thread(target=self.die, daemon=True).start()
                self.release.wait()
        prompt, params = body["token_ids"], body["sampling_params"]
        vocabulary = self.model.config.vocab_size
        if max(prompt) >= vocabulary:
            return 400, {"error": {"message": f"Token id {max(prompt)} is out of vocabulary", "code": 400}}
        if "prompt_logprob_token_ids" in params and not self.chosen:
            return 400, {"error": {"message": "prompt_logprob_token_ids requires the V2 model runner", "code": 400}}
        return 200, {
            "request_id": "generate-tokens-1",
            "choices": [self.choice(prompt, params)],
            "prompt_logprobs": self.prompt_logprobs(prompt, params),
            "prompt_token_id_logprobs": self.chosen_logprobs(prompt, params),
        }

    def choice(self, prompt, params):
        new = min(params["max_tokens"], self.context - len(prompt))
        model = self.old if self.old is not None and tuple(prompt) in self.seen else self.model
        if "prompt_logprobs" not in params:
            self.seen.add(tuple(prompt))
        stops = tuple(params.get("stop_token_ids", ()))
        how = Sampling(new, params["temperature"], params["top_p"], stops)
        request = Request(tuple(prompt), (("fake", params.get("seed", 0)),))
        [[response]] = HFEngine(Policy(model)).generate([request], how)
        logp = logprobs_of(model, [*prompt, *response.ids])[len(prompt) - 1 :]
        ids = list(response.ids)
        reason, ended = ("stop", ids[-1]) if response.finished else ("length", None)
        if self.fault == "abort":
            ids, reason = ids[: len(ids) // 2], "abort"
        return {
            "index": 0,
            "token_ids": ids,
            "finish_reason": reason,
            "stop_reason": ended,
            "logprobs": {
                "content": [{"token_id": i, "logprob": float(row[i]), "top_logprobs": []} for i, row in zip(ids, logp)]
            },
            "weight_versions": [{"version": self.weights, "start": 0, "end": len(ids)}],
        }

    def prompt_logprobs(self, prompt, params):
        if "prompt_logprobs" not in params:
            return None
        rows = [None]
        for id, row in zip(prompt[1:], logprobs_of(self.model, prompt)):
            wanted = {*row.topk(params["prompt_logprobs"]).indices.tolist(), id}
            rows.append({str(i): {"logprob": float(row[i]), "rank": int((row > row[i]).sum()) + 1} for i in wanted})
        return rows

    def chosen_logprobs(self, prompt, params):
        if "prompt_logprob_token_ids" not in params:
            return None
        start, ids = params.get("prompt_logprob_start", 0), torch.tensor(params["prompt_logprob_token_ids"])
        logp = logprobs_of(self.model, prompt)[start : start + len(ids)]
        values = logp.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
        packed = io.BytesIO()
        np.save(packed, values.float().numpy())
        return base64.b64encode(packed.getvalue()).decode()


@torch.no_grad()
def logprobs_of(model, ids):
    """float [T - 1, V]: of the ids after the first."""
    return model(torch.tensor([ids]), use_cache=False).logits[0, :-1].float().log_softmax(-1)


class _Quiet(ThreadingHTTPServer):
    """Says nothing of connections that break."""

    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(None)

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.reply(json.loads(content) if content else None)

    def reply(self, body):
        fake = self.server_of_tests
        fake.connections.add(self.connection)
        status, answer = fake.answer(self.path, body)
        content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        if fake.http is not self.server:
            return  # it has died meanwhile
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def main(words):
    """As a process of its own, with the words of vLLM's command line, and --pid FILE."""
    if "--pid" in words:
        Path(words[words.index("--pid") + 1]).write_text(str(os.getpid()))
    fake = FakeVLLM(words[words.index("--model") + 1])
    fake.port = int(words[words.index("--port") + 1])
    fake.start()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
