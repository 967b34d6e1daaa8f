"""How the embedded pair was made: supervised training of its teacher and its student on worked locks.

    python -m driftgate.sandbox.pretrain --out DIR [--only teacher|student]

Both models get the same curriculum. Chains of one or two moves train the moves. Longer chains train finding the
next move. Then come whole locks. The teacher gets all updates, and its learning rate is annealed. The student stops
early, at its full learning rate, while it still makes mistakes now and then.

Shapes: B sequences, L tokens of the longest.
"""

import argparse
import json
import platform
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ..data.response import Response
from ..data.tasks import BENCHMARKS, LEVELS, LockProblem, benchmark, endless_problems
from ..evaluate.passk import summarise
from ..models.policy import Policy
from ..rollout.engine import Request, Sampling
from ..rollout.hf import HFEngine
from ..verify.boxed import answer_of
from .tokenizer import EOS, PAD, VOCABULARY, build_tokenizer

PAD_ID, EOS_ID = VOCABULARY.index(PAD), VOCABULARY.index(EOS)
SEED = 0
TOKENS_PER_MOVE = 15  # five in the problem, ten in the solution
BATCHES_PER_POOL = 8  # problems are sorted by length within a pool of so many batches: little padding
LEARNING_RATE = 3e-3
WARMUP = 30  # updates
ANNEALED_SHARE = 0.4  # the last share of its updates over which an annealed run lowers its learning rate to zero
CLIP_NORM = 1.0  # of the gradient
WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.95)
HEAD_DIM = 32
INIT_STD = 0.06  # three times the usual: such narrow models learn much faster from the start
INIT_SHARPNESS = 1.5  # norm weights of queries and keys: at 1, so small a head cannot pick one token of 300
IGNORED = -100  # label of the positions without a loss
PROBLEMS, SAMPLES = 200, 4  # of the evaluation: problems per benchmark, samples per problem
TEMPERATURE, TOP_P, MAX_NEW_TOKENS = 1.0, 0.9, 288  # of the evaluation; the longest solution has 256 tokens


Pair = tuple[list[int], list[int]]  # token ids of a problem and of its solution


@dataclass(frozen=True)
class Lesson:
    """A number of updates on locks of the given lengths (in moves), each on at most `tokens` padded tokens."""

    updates: int
    lengths: tuple[int, ...]
    tokens: int


WHOLE = tuple(LEVELS.values())
LESSONS = {
    "teacher": (Lesson(340, (1, 2), 8192), Lesson(100, (2, 4, 6, 8), 8192), Lesson(400, WHOLE, 8192)),
    "student": (Lesson(400, (1, 2), 4096), Lesson(120, (2, 4, 6, 8), 4096), Lesson(159, WHOLE, 4096)),
}
ANNEALED = {"teacher": True, "student": False}
SIZES: dict[str, dict[str, Any]] = {
    "teacher": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4},
    "student": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
}


def build_model(role: str, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A new teacher or student, with the tokenizer's ids for padding and end."""
    size = SIZES[role]
    config = Qwen3Config(
        **size,
        vocab_size=len(tokenizer),
        num_key_value_heads=size["num_attention_heads"],
        head_dim=HEAD_DIM,
        max_position_embeddings=1024,
        initializer_range=INIT_STD,
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.constant_(weight, INIT_SHARPNESS)
    return model


def encode(problems: list[LockProblem], tokenizer: PreTrainedTokenizerFast) -> list[Pair]:
    """Token ids of each problem and of its solution, with the end token."""
    questions = tokenizer([p.problem for p in problems]).input_ids
    solutions = tokenizer([p.solution for p in problems]).input_ids
    return [(q, [*s, EOS_ID]) for q, s in zip(questions, solutions, strict=True)]


def batches(lesson: Lesson, seed: int, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (ids [B, L], labels [B, L]) without end; B x L <= lesson.tokens."""
    stream = endless_problems(seed, lesson.lengths)
    rng = random.Random(seed)
    pool = BATCHES_PER_POOL * lesson.tokens // (TOKENS_PER_MOVE * sum(lesson.lengths) // len(lesson.lengths))
    while True:
        pairs = encode(list(islice(stream, pool)), tokenizer)
        chunks = list(_chunks(sorted(pairs, key=_length), lesson.tokens))
        rng.shuffle(chunks)
        for chunk in chunks:
            yield _padded(chunk, PAD_ID)


def _length(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1])


def _chunks(pairs: list[Pair], limit: int) -> Iterator[list[Pair]]:
    """Cut pairs sorted by length into batches of at most `limit` padded tokens."""
    chunk: list[Pair] = []
    for pair in pairs:
        if (len(chunk) + 1) * _length(pair) > limit:
            yield chunk
            chunk = []
        chunk.append(pair)
    yield chunk


def _padded(pairs: list[Pair], pad: int) -> tuple[Tensor, Tensor]:
    """Ids [B, L], padded on the right, and labels [B, L] with a loss on solutions only."""
    shape = len(pairs), max(map(_length, pairs))
    ids, labels = torch.full(shape, pad), torch.full(shape, IGNORED)
    for row, (question, solution) in enumerate(pairs):
        end = len(question) + len(solution)
        ids[row, :end] = torch.tensor(question + solution)
        labels[row, len(question) : end] = torch.tensor(solution)
    return ids, labels


def learning_rate(update: int, updates: int, annealed: bool) -> float:
    """Linear warm-up, then constant; in an annealed run it falls to zero at the end."""
    rate = LEARNING_RATE * min(1.0, (update + 1) / WARMUP)
    left = (updates - update) / updates
    return rate * min(1.0, left / ANNEALED_SHARE) if annealed else rate


def loss_of(model: Qwen3ForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled tokens of ids [B, L]. The head is computed at their positions only."""
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
    targets = labels[:, 1:]
    asked = targets != IGNORED
    return cross_entropy(model.lm_head(hidden[asked]), targets[asked])


def train(model: Qwen3ForCausalLM, role: str, tokenizer: PreTrainedTokenizerFast, progress: Progress) -> None:
    """Train the model through its lessons, in place."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=WEIGHT_DECAY)
    updates = sum(lesson.updates for lesson in LESSONS[role])
    task = progress.add_task(f"{role}: training", total=updates)
    for update, (ids, labels) in enumerate(_course(role, tokenizer)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(update, updates, ANNEALED[role])
        loss = loss_of(model, ids, labels)
        loss.backward()
        clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        progress.update(task, advance=1, description=f"{role}: training, loss {loss.item():.4f}")


def _course(role: str, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches (ids [B, L], labels [B, L]) of all lessons; each lesson has its own stream of problems."""
    for number, lesson in enumerate(LESSONS[role]):
        yield from islice(batches(lesson, SEED + number, tokenizer), lesson.updates)


def measure(model: Qwen3ForCausalLM, role: str, tokenizer: PreTrainedTokenizerFast, progress: Progress) -> dict:
    """pass@1 on the held-out problems of every benchmark, and how the responses ended."""
    task = progress.add_task(f"{role}: measuring", total=len(BENCHMARKS) * PROBLEMS * SAMPLES)
    counts, responses = {}, []
    for name in BENCHMARKS:
        problems = benchmark(name, PROBLEMS)
        answers = _sampled(model, problems, tokenizer, lambda n: progress.advance(task, n))
        counts[name] = [
            (sum(_is_right(problem, response, tokenizer) for response in row), SAMPLES)
            for problem, row in zip(problems, answers, strict=True)
        ]
        responses += [response for row in answers for response in row]
    return {
        "pass@1": {name: score["pass@1"] for name, score in summarise(counts, ks=(1,)).items()},
        "finished": sum(response.finished for response in responses) / len(responses),
        "mean_tokens": sum(len(response.ids) for response in responses) / len(responses),
    }


def _sampled(
    model: Qwen3ForCausalLM,
    problems: list[LockProblem],
    tokenizer: PreTrainedTokenizerFast,
    advance: Callable[[int], None],
) -> list[list[Response]]:
    """SAMPLES responses to each problem, each with its own random key."""
    sampling = Sampling(MAX_NEW_TOKENS, TEMPERATURE, TOP_P, (EOS_ID,))
    requests = [
        Request(tuple(tokenizer(p.problem).input_ids), tuple((SEED, p.id, k) for k in range(SAMPLES))) for p in problems
    ]
    return HFEngine(Policy(model), batch=256).generate(requests, sampling, advance)


def _is_right(problem: LockProblem, response: Response, tokenizer: PreTrainedTokenizerFast) -> bool:
    return answer_of(str(tokenizer.decode(list(response.ids), skip_special_tokens=True))) == problem.answer


def make(role: str, out: Path, progress: Progress) -> dict:
    """Train one model, save it with its tokenizer under out/role, and return its figures."""
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    model = build_model(role, tokenizer)
    began, cpu = time.perf_counter(), time.process_time()
    train(model, role, tokenizer, progress)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    model.eval().save_pretrained(out / role)
    tokenizer.save_pretrained(out / role)
    return {
        "parameters": model.num_parameters(),
        "lessons": [asdict(lesson) for lesson in LESSONS[role]],
        "annealed": ANNEALED[role],
        "training_seconds": round(seconds),
        "training_cpu_seconds": round(cpu_seconds),
        **measure(model, role, tokenizer, progress),
    }


def circumstances(role: str) -> dict:
    """What is needed to repeat a report: the command, the versions, the fixed settings."""
    return {
        "command": f"python -m driftgate.sandbox.pretrain --out DIR --only {role}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": f"{platform.machine()}, CPU, {torch.get_num_threads()} thread(s)",
        "seed": SEED,
        "learning_rate": LEARNING_RATE,
        "measured": {
            "problems_per_benchmark": PROBLEMS,
            "samples_per_problem": SAMPLES,
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "max_new_tokens": MAX_NEW_TOKENS,
        },
    }


def main() -> None:
    """Make one or both models and write made.json beside them. An existing entry of the other model is kept."""
    parser = argparse.ArgumentParser(description="Make the teacher and the student of the sandbox.")
    parser.add_argument("--out", type=Path, required=True, help="folder for teacher/, student/ and made.json")
    parser.add_argument("--only", choices=tuple(SIZES), help="make only this model")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the result may depend on them")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = arguments.out / "made.json"
    made = json.loads(path.read_text()) if path.exists() else {}
    with Progress() as progress:
        for role in [arguments.only] if arguments.only else SIZES:
            made[role] = circumstances(role) | make(role, arguments.out, progress)
            path.write_text(json.dumps(made, indent=2) + "\n")
    print(json.dumps(made, indent=2))


if __name__ == "__main__":
    main()
