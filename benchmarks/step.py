"""What a whole optimiser step costs, beside TRL's DistillationTrainer and beside plain full logits, in one run.

    python benchmarks/step.py [--repeats 3] [--quick]

Rollout, scoring and update of 8 prompts x 1 response of 128 tokens, float32, one thread. Student 4 layers x 256,
teacher 6 x 384: random Qwen3 weights, tied heads, of 8,192 and of 151,936 tokens. Nothing can end a response: the EOS
token's id lies one beyond the head, for all ways alike. All sample plainly (temperature 1, top-p 1).

Every way lives in a process of its own and steps when it is told to, one at a time, in rounds; the first round is not
counted. So its peak is that of a fresh process; `baseline_mb` is what it held with models loaded, before any step.

TRL steps as `DistillationConfig` has it (reverse KL over the vocabulary, fused AdamW), but in float32, without
activation checkpointing, logging and saving. In a single pass every gate is 1, which is why a recipe refuses it; it is
timed here all the same. "full logits" rolls out and packs by driftgate's code, but scores and learns from whole
[tokens x vocabulary] logits under autograd.
Writes benchmarks/results/step.json.
"""

import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# read at import; the processes that step take them over
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import measure
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback

import driftgate
from driftgate.config import TrainConfig
from driftgate.data.experience import Experience
from driftgate.data.packing import MicroBatch
from driftgate.models.policy import Policy
from driftgate.recipe import load_recipe
from driftgate.stop import StopSignal
from driftgate.train import loop, setup
from driftgate.train.rollouts import prompts_of_step, sample_responses
from driftgate.train.tracking import Display, Metrics

MODELS = {"student": (4, 256), "teacher": (6, 384)}
"""Layers and hidden size."""
K = 32
LR = 1e-6
VOCABULARY_KL = "objective={kind: divergence, support: vocabulary, divergence: reverse_kl}"
RECIPES = {
    "driftgate, LSM": ("qwen3/lsm_block64", []),
    "driftgate, sampled token": ("qwen3/sampled_token_block64", []),
    "driftgate, LSM, no gate": ("qwen3/lsm_none", ["log_drift=false"]),
    "driftgate, TRL's objective": ("qwen3/lsm_none", [VOCABULARY_KL, "log_drift=false"]),
    "full logits, LSM": ("qwen3/lsm_block64", []),
    "full logits, sampled token": ("qwen3/sampled_token_block64", []),
}
TWINS = {name.replace("full logits", "driftgate"): name for name in RECIPES if name.startswith("full logits")}
"""Ways that must find the same loss in their first step."""
OURS = "driftgate, LSM"
MANY = "many passes"
Step = dict[str, Any]
"""What a step told: `cpu_s`, `kernel`, `parts` (CPU-seconds of each part's calls in turn) and, but for TRL, `loss`."""
START = {False: "spawn", True: "fork"}
"""How a process starts. By `quick`: a fork has everything imported, but its memory is clouded."""
PASSES = (2, 4, 8)
HEADLINE = ("TRL", *TWINS)
"""Ways that step in every round; at the larger size the others step in the first counted one alone."""
TARGETS = {8_192: 0.6, 151_936: 0.35}
"""Most CPU-seconds of driftgate's gated step at one pass, as a share of TRL's."""
COLUMNS = {
    "cpu_s": ".2f",
    "ratio": ".2f",
    "least": ".2f",
    "most": ".2f",
    "peak_mb": ".0f",
    "baseline_mb": ".0f",
    "rollout": ".2f",
    "behaviour": ".2f",
    "teacher": ".2f",
    "update": ".2f",
    "kernel": ".2f",
}
"""The parts in CPU-seconds too. `kernel`, of all the parts, is what the system spent, on handing out memory."""


@dataclass(frozen=True)
class Setting:
    """What every way is given."""

    folder: Path
    vocabulary: int
    prompts: int = 8
    tokens: int = 128


def main() -> None:
    arguments = measure.parser(__doc__ or "").parse_args()
    repeats = arguments.repeats or (1 if arguments.quick else 3)
    torch.set_num_threads(1)
    began, figures = time.time(), {}
    with tempfile.TemporaryDirectory() as folder:
        for vocabulary in list(TARGETS)[: 1 if arguments.quick else None]:
            size = (4, 16) if arguments.quick else (8, 128)
            setting = Setting(Path(folder) / str(vocabulary), vocabulary, *size)
            figures[str(vocabulary)] = compared(setting, repeats, arguments.quick)
    packages = ["transformers", *(["trl", "accelerate", "datasets"] if has_trl() else [])]
    sizes = {"prompts": setting.prompts, "new_tokens": setting.tokens, "models": MODELS, "k": K, "repeats": repeats}
    measure.write("step", began, arguments.quick, packages, **sizes, figures=figures)


def compared(setting: Setting, repeats: int, quick: bool) -> measure.Figures:
    """Every way at one size, printed as a table."""
    make_inputs(setting)
    workers = {name: Worker(name, setting, quick) for name in names_of(quick)}
    steps = in_rounds(workers, repeats + 1, sparing=setting.vocabulary > 100_000)
    peaks = {name: worker.close() for name, worker in workers.items()}
    check_twins({name: found[0]["loss"] for name, found in steps.items() if name in RECIPES})
    rows, base = rows_of(steps), next(iter(workers))
    seconds = {name: [one["cpu_s"] for one in row] for name, row in rows.items()}
    figures = measure.against(seconds, dict.fromkeys(rows, base))
    for name, row in rows.items():
        own = peaks.get(name, peaks[OURS])
        figures[name] |= medians(row) | own | {"memory_ratio": own["peak_mb"] / peaks[base]["peak_mb"]}
        figures[name]["rounds"] = len(row)
    measure.table(figures, COLUMNS, f"V = {setting.vocabulary}, over {base}")
    if base == "TRL" and not quick:
        tell_targets(figures, TARGETS[setting.vocabulary])
    print()
    return figures


def names_of(quick: bool) -> list[str]:
    """The ways, TRL first."""
    ours = [name for name in RECIPES if not quick or ("LSM" in name and "no gate" not in name)]
    if has_trl():
        return ["TRL", *ours]
    print(f"trl is not installed, so the steps are compared with {ours[0]} alone; pip install trl==1.16.0")
    return ours


def in_rounds(workers: dict[str, "Worker"], rounds: int, sparing: bool) -> dict[str, list[Step]]:
    """Steps of each way, the ways in turn; the first is to warm up. MANY are those of the most passes."""
    steps: dict[str, list[Step]] = {name: [] for name in [*workers, MANY]}
    for number in range(rounds):
        for name, worker in workers.items():
            if number < 2 or not sparing or name in HEADLINE:
                steps[name].append(worker.step(1))
        if number == 1 or (number and not sparing):
            steps[MANY].append(workers[OURS].step(PASSES[-1]))
    return steps


def rows_of(steps: dict[str, list[Step]]) -> dict[str, list[dict[str, float]]]:
    """What each counted step cost, for one optimiser update, by row of the table."""
    rows = {name: [costs(step, 1) for step in found[1:]] for name, found in steps.items() if name != MANY}
    return rows | {f"{OURS}, {n} passes": [costs(step, n) for step in steps[MANY]] for n in PASSES}


def costs(step: Step, passes: int) -> dict[str, float]:
    """Of a step cut off behind so many of its updates, all divided by them."""
    spared = sum(step["parts"].get("update", [])[passes:])
    parts = {name: sum(seconds[:passes]) / passes for name, seconds in step["parts"].items()}
    whole = {"cpu_s": (step["cpu_s"] - spared) / passes}
    return whole | parts | ({"kernel": step["kernel"]} if passes == 1 else {})


def medians(row: list[dict[str, float]]) -> dict[str, float]:
    """Of each part's CPU-seconds."""
    return {name: statistics.median(one[name] for one in row) for name in row[0] if name != "cpu_s"}


def check_twins(losses: dict[str, float]) -> None:
    """The full logits give the same loss on the same responses, so that the costs are of the same thing."""
    for ours, plain in TWINS.items():
        if plain in losses and not math.isclose(losses[ours], losses[plain], rel_tol=1e-3, abs_tol=1e-5):
            raise SystemExit(f"{ours} has a loss of {losses[ours]} in its first step, {plain} of {losses[plain]}")


def tell_targets(figures: measure.Figures, most: float) -> None:
    for name in TWINS:
        ratio = figures[name]["ratio"]
        figures[name] |= {"target": most, "reached": ratio <= most}
        print(f"{name}: {ratio:.2f} of TRL, target {most:.2f}: {'reached' if ratio <= most else 'missed'}")


def has_trl() -> bool:
    return find_spec("trl") is not None


def make_inputs(setting: Setting) -> None:
    """Both models with their tokenizer, and 64 prompts of 16 to 31 tokens, under the setting's folder."""
    tokenizer, size = make_tokenizer(setting.vocabulary), setting.vocabulary
    for role, (layers, hidden) in MODELS.items():
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=size,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=0,
        )
        Qwen3ForCausalLM(config).save_pretrained(setting.folder / role)
        tokenizer.save_pretrained(setting.folder / role)
    texts = [" ".join(f"w{1 + n * 97 + place}" for place in range(16 + n % 16)) for n in range(64)]
    lines = "".join(json.dumps({"problem": text}) + "\n" for text in texts)
    (setting.folder / "prompts.jsonl").write_text(lines)


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A word for each id of the head, and an EOS token one beyond it, which no model here can draw."""
    words = {"<pad>": 0} | {f"w{i}": i for i in range(1, size)} | {"<eos>": size}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left")


class Worker:
    """A process that makes the steps of one way when it is told to."""

    def __init__(self, name: str, setting: Setting, quick: bool):
        context = multiprocessing.get_context(START[quick])
        self.name, (self.pipe, theirs) = name, context.Pipe()
        serve = serve_trl if name == "TRL" else serve_ours
        self.process = context.Process(target=serve, args=(Line(theirs), name, setting), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False

    def step(self, passes: int) -> Step:
        if not self.ready:
            self.baseline, self.ready = self._told(), True
        self.pipe.send(passes)
        return self._told()

    def close(self) -> dict[str, float]:
        """`baseline_mb` and `peak_mb` of the process, which ends."""
        self.pipe.send(None)
        peak = self._told()
        self.process.join()
        return self.baseline | peak

    def _told(self) -> dict[str, Any]:
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit(f"the process of {self.name} ended early; what it said is above") from None


@dataclass
class Line:
    """The worker's end: it tells each step's cost, and waits to be told to make the next."""

    pipe: Any
    began: float = 0.0
    kernel: float = 0.0
    parts: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """CPU-seconds of parts of the step at hand, of each call."""

    def begin(self) -> int | None:
        """Wait for the order. Passes over the rollout; None for no more steps."""
        passes = self.pipe.recv()
        self.parts.clear()
        self.kernel, self.began = os.times().system, time.process_time()
        return passes

    def end(self, **more: float) -> None:
        spent = {"cpu_s": time.process_time() - self.began, "kernel": os.times().system - self.kernel}
        self.pipe.send(spent | {"parts": dict(self.parts)} | more)

    @contextmanager
    def part(self, name: str):
        began = time.process_time()
        yield
        self.parts[name].append(time.process_time() - began)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its cost counted as a part."""

        def clocked(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        return clocked


def serve_ours(line: Line, name: str, setting: Setting) -> None:
    """Steps of driftgate, or of the full logits, until there are no more orders."""
    torch.set_num_threads(1)
    way = (Plain if name.startswith("full logits") else Ours)(line, name, setting)
    line.pipe.send({"baseline_mb": measure.memory_mb("VmRSS")})
    while (passes := line.begin()) is not None:
        way.step(passes)
        line.end(loss=way.loss)
    line.pipe.send({"peak_mb": measure.memory_mb("VmHWM")})


class Ours:
    """A run of driftgate by its own loop, everything that it logs included."""

    loss: float

    def __init__(self, line: Line, name: str, setting: Setting):
        self.line, self.config = line, configured(name, setting)
        self.out = setting.folder / name
        self.out.mkdir()
        self.parts = setup.set_up(self.config, self.out)
        self.state = loop.State(self.parts.position, self.parts.pending)
        self.metrics = Metrics(self.out / "metrics.jsonl", self.state.position)
        self.display = Display(Console(quiet=True), self.config.steps, 0)
        parts = {"sample_responses": "rollout", "behaviour_scores": "behaviour"}
        for function, part in (parts | {"target_scores": "teacher", "timed_update": "update"}).items():
            setattr(loop, function, line.around(part, getattr(loop, function)))

    def step(self, passes: int) -> None:
        # of a checked configuration, which would refuse a gate in a single pass
        config = self.config.model_copy(update={"passes": passes})
        loop.one_step(config, self.parts, self.state, self.metrics, self.out, self.display, StopSignal())
        self.loss = json.loads((self.out / "metrics.jsonl").read_text().splitlines()[-1])["loss"]


def configured(name: str, setting: Setting) -> TrainConfig:
    recipe, own = RECIPES[name]
    shared = {
        "student": {"path": str(setting.folder / "student")},
        "teacher": {"path": str(setting.folder / "teacher")},
        "prompts": {"path": str(setting.folder / "prompts.jsonl"), "per_step": setting.prompts},
        "rollout": {
            "samples": 1,
            "max_new_tokens": setting.tokens,
            "top_p": 1.0,
            "allow_truncated": True,
            "stop_ids": [setting.vocabulary],
        },
        "optimizer": {"lr": LR},
        "diagnostics": {"every": 0},
        "threads": 1,
        "device": "cpu",
        "steps": 1000,
    }
    return load_recipe(recipe, [f"{key}={json.dumps(value)}" for key, value in shared.items()] + own)


class Plain:
    """The same step written plainly: logits of all tokens at once, their log-softmax, and gather."""

    loss: float
    behaviour: torch.Tensor | None

    def __init__(self, line: Line, name: str, setting: Setting):
        self.line, self.config, self.number = line, configured(name, setting), 0
        self.local = "LSM" in name
        self.parts = setup.set_up(self.config, setting.folder)
        self.student, self.teacher = self.parts.policy, self.parts.targets["teacher"].policy

    def step(self, passes: int) -> None:
        with self.line.part("rollout"):
            batch, micro = self.rolled_out()
        with self.line.part("teacher"), torch.no_grad():
            support, theirs = self.looked_at(logprobs(self.teacher, micro), batch.ids[:, None])
        self.behaviour = None
        for _ in range(passes):
            with self.line.part("update"):
                self.update(micro, batch, support, theirs)

    def rolled_out(self) -> tuple[Experience, MicroBatch]:
        """The responses of the next step, by driftgate's engine, and the one forward that covers them."""
        prompts = prompts_of_step(self.parts.prompts, self.config, self.number)
        limit, parts = self.config.rollout.max_new_tokens, self.parts
        responses = sample_responses(parts.engines, prompts, self.config, self.number, limit, lambda count: None)
        batch, self.number = Experience.of(prompts, responses), self.number + 1
        budget = self.config.microbatch_tokens
        [micro] = batch.micro_batches(range(len(prompts)), budget, self.student.device)
        return batch, micro

    def looked_at(self, theirs: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [N, K] that the loss compares, and the teacher's log-probabilities of them."""
        if self.local:
            top = theirs.topk(K, dim=-1)
            return top.indices, top.values
        return ids, theirs.gather(1, ids)

    def update(self, micro: MicroBatch, batch: Experience, support: torch.Tensor, theirs: torch.Tensor) -> None:
        """One optimiser step; before the first one the student is that which wrote, so no pass is made to ask it."""
        scores = logprobs(self.student, micro)
        logp = scores.gather(1, batch.ids[:, None])[:, 0]
        behaviour = self.behaviour = logp.detach() if self.behaviour is None else self.behaviour
        if self.local:
            losses = driftgate.topk_reverse_kl(scores.gather(1, support), theirs)
        else:
            losses = driftgate.sampled_token_loss(logp, behaviour, theirs[:, 0])
        gate = driftgate.drift_gate(logp, behaviour, driftgate.fixed_spans(batch.rows))
        loss = (driftgate.unit_mean(gate) * losses).mean()
        learner = self.parts.learner
        learner.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters, self.config.optimizer.clip_norm)
        learner.optimizer.step()
        self.loss = loss.item()


def logprobs(policy: Policy, micro: MicroBatch) -> torch.Tensor:
    """Of the whole vocabulary at each response token, [N, V]."""
    model: Any = policy.model
    hidden = model.base_model(input_ids=micro.input_ids, use_cache=False).last_hidden_state
    return model.lm_head(hidden.flatten(0, 1)[micro.predicts]).log_softmax(-1)


def serve_trl(line: Line, name: str, setting: Setting) -> None:
    """Steps of TRL's trainer, which waits for its orders at each step's end."""
    torch.set_num_threads(1)
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportMissingImports]

    rows = (setting.folder / "prompts.jsonl").read_text().splitlines()
    trainer = DistillationTrainer(
        model=str(setting.folder / "student"),
        teacher_model=str(setting.folder / "teacher"),
        args=DistillationConfig(**trl_settings(setting)),
        train_dataset=Dataset.from_list([{"prompt": json.loads(row)["problem"]} for row in rows]),
        callbacks=[Turns(line)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.model.generate = line.around("rollout", trainer.model.generate)
    trainer.train()
    line.pipe.send({"peak_mb": measure.memory_mb("VmHWM")})


def trl_settings(setting: Setting) -> dict[str, Any]:
    """Its own but for float32, no recomputed activations, nothing logged or saved, and what all ways share."""
    return {
        "output_dir": str(setting.folder / "trl"),
        "per_device_train_batch_size": setting.prompts,
        "gradient_accumulation_steps": 1,
        "max_completion_length": setting.tokens,
        "max_steps": 1000,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class Turns(TrainerCallback):
    """A step is all that runs from one order to the end of the optimiser step, generation included."""

    def __init__(self, line: Line):
        self.line = line

    def on_train_begin(self, args, state, control, **rest) -> None:
        self.line.pipe.send({"baseline_mb": measure.memory_mb("VmRSS")})
        self.line.begin()

    def on_step_end(self, args, state, control, **rest) -> None:
        self.line.end()
        control.should_training_stop = self.line.begin() is None


if __name__ == "__main__":
    main()
