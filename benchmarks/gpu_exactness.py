"""How exact the package is on a GPU: the head, decoding against the trainer's forward, updates made twice.

    python benchmarks/gpu_exactness.py [--quick --device cpu]

Log-probabilities in nats. Writes benchmarks/results/gpu_exactness.json.
"""

import statistics
import warnings
from dataclasses import replace
from itertools import product

import torch
from gpu_bench import Bench, Figures, attempt, deterministic, run_program
from gpu_decoding import engine_decode
from gpu_head import operands_of
from gpu_sizes import RECIPES, batch_of, model_of, random_ids, spread
from gpu_update import Case, make_learner, update_config, whole
from torch import Tensor
from training import batch_of as responses_batch
from training import requests_of, student_logp, update

from driftgate.method import head
from driftgate.models.policy import Policy

TYPES = {
    "bfloat16 weights": (torch.bfloat16, None),
    "float32 weights, bfloat16 products": (torch.float32, "bfloat16"),
    "float32": (torch.float32, None),
}
"""Weights, and products where they are of another type."""


def measure_exactness(bench: Bench, figures: Figures) -> None:
    with deterministic(True):
        attempt(figures, "head", lambda: head_errors(bench))
        for name, types in TYPES.items():
            row = f"decoding against the trainer's forward, {name}"
            attempt(figures, row, lambda types=types: mismatch(bench, *types))
    for objective, on in product(RECIPES, (True, False)):
        row = f"same bits again, {objective}" + ("" if on else ", any order")
        attempt(figures, row, lambda objective=objective, on=on: repeated(bench, objective, on))
    print()
    for name, row in figures.items():
        print(f"{name}: " + ", ".join(f"{key} {shown(value)}" for key, value in row.items()))


def shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def head_errors(bench: Bench) -> dict[str, float]:
    """Errors of the head in bfloat16 against float64 of the same operands: log-probabilities, and gradients relative to
    their norm."""
    hidden, weight, ids = operands_of(bench)
    hidden, ids = hidden.detach()[: bench.size.compared].requires_grad_(), ids[: bench.size.compared, 0]
    ours = head.token_logprobs(hidden, weight, ids)
    ours.sum().backward()
    wide = [part.detach().double().requires_grad_() for part in (hidden, weight)]
    exact = (wide[0] @ wide[1].T).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    exact.sum().backward()
    rounded = (hidden.detach() @ weight.detach().T).float().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    errors = {"max_error": (ours.double() - exact).abs().max(), "mean_error": (ours.double() - exact).abs().mean()}
    errors["max_error_of_bfloat16_logits"] = (rounded.double() - exact).abs().max()
    for name, part, reference in zip(("hidden", "weight"), (hidden, weight), wide):
        errors[f"gradient_error_{name}"] = relative_error(part.grad, reference.grad)
    return {name: value.item() for name, value in errors.items()}


def relative_error(found: Tensor | None, exact: Tensor | None) -> Tensor:
    assert found is not None
    assert exact is not None
    return (found.double() - exact).norm() / exact.norm()


@torch.no_grad()
def mismatch(bench: Bench, dtype: torch.dtype, compute: str | None) -> dict[str, float]:
    """Between the engine's log-probabilities of what it drew and the trainer's own forward, same weights."""
    size, rows = bench.size, max(bench.size.rows // 4, 1)
    policy = Policy(spread(model_of(size.student, dtype, bench.device)), compute)
    prompts = random_ids(size.vocabulary, rows, size.prompt)
    responses = engine_decode(policy, requests_of(prompts, "gpu benchmark"), size.new[0])
    batch = responses_batch(prompts.tolist(), responses)
    shift = student_logp(policy, batch, max(size.budgets)).double() - batch.engine_logp.double()
    blocks = shift.split(min(64, size.new[0]))
    return {
        "mean": shift.abs().mean().item(),
        "max": shift.abs().max().item(),
        "mean_of_block": statistics.mean(abs(block.mean().item()) for block in blocks),
    }


def repeated(bench: Bench, objective: str, on: bool) -> Figures:
    """Whether two updates from the same state end in the same bits when they are made again, and the operations for
    which torch cannot promise that. Gradients show more than weights: AdamW's first steps hardly depend on their size.
    """
    with deterministic(on), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one, other = (updated(bench, objective) for _ in range(2))
    texts = {str(warning.message).split(". ")[0] for warning in caught if "deterministic" in str(warning.message)}
    found: Figures = {name: all(map(torch.equal, one[name], other[name])) for name in one}
    if on and not all(found.values()):
        found["error"] = "identical updates differ although torch is set to be deterministic"
    return found | {"not_deterministic": sorted(texts)}


def updated(bench: Bench, objective: str) -> dict[str, list[Tensor]]:
    """Weights and last gradients of a student of few layers after two updates, on the CPU."""
    shape = replace(bench.size.student, layers=bench.size.layers)
    config = update_config(bench, Case(objective, True, bench.size.budgets[0]))
    learner = make_learner(bench, config, shape)
    portions = whole(config, batch_of(bench.size))
    for number in (1, 2):
        update(learner, portions, number)
    gradients = [parameter.grad.cpu() for parameter in learner.parameters if parameter.grad is not None]
    return {"weights": [parameter.detach().cpu() for parameter in learner.parameters], "gradients": gradients}


if __name__ == "__main__":
    run_program("exactness", __doc__ or "", measure_exactness)
