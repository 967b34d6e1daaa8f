"""A summary of the shape that a study writes, with made-up numbers."""

import math
from typing import Any

import numpy as np

NAMES = (
    "no gate", "block64", "newline", "token", "sequence", "changepoint", "block64, tau 4", "block64, resampled",
    "block64, shuffled within", "block64, inverse", "EOPD weights", "sampled token, block64", "fixed ESS", "one pass",
)  # fmt: skip
BENCHMARKS = {"lock16": 40, "lock19": 40, "lock22": 40, "lock25": 40}

EQUIVALENCE = ("p_equivalence", "p_equivalence_holm", "low_90", "high_90")


def fake_summary(arms: int = 12, seeds: int = 5, steps: int = 50, claims: bool = True) -> dict[str, Any]:
    """A summary of the shape that a study writes, with made-up numbers; one seed has no comparisons."""
    draw = np.random.default_rng(0)
    names = NAMES[:arms]
    comparisons = _comparisons(names, seeds, draw) if seeds > 1 else []
    scores = {
        name: _scores(0.4 + 0.05 * place, draw) for place, name in enumerate(["student, before", *names, "teacher"])
    }
    return {
        "name": "Does a gate help when rollouts are reused?",
        "what": "The embedded pair, LSM with K = 32; arms differ in the gate alone.",
        "command": "driftgate study gate --out study/gate",
        "commit": "d9db634aa",
        "versions": {"driftgate": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.17.0"},
        "cpus": 2,
        "seconds": 9243.0,
        "cpu_seconds": 17640.0,
        "steps": steps,
        "passes": dict.fromkeys(names, 4),
        "seeds": list(range(seeds)),
        "samples": 8,
        "problems": dict(BENCHMARKS),
        "common": {"objective.kind": "sampled_token"},
        "arms": {name: _arm(name) for name in names},
        "locked": _locked(seeds),
        "runs": [_run(name, seed, draw) for name in names for seed in range(seeds)],
        "scores": scores,
        "comparisons": comparisons,
        "claims": _claims(names) if claims else [],
        "curves": {name: {str(seed): _curve(steps, draw) for seed in range(seeds)} for name in names},
        "gates": {name: _gates(place, draw) for place, name in enumerate(names)},
        "drift": {name: _drift(place, draw) for place, name in enumerate(names)},
    }


def minimal_summary() -> dict[str, Any]:
    """Two arms, one seed, no claims, no gates, one failed run."""
    summary = fake_summary(2, 1, 4, claims=False) | {"gates": {}, "drift": {}, "locked": [], "commit": None}
    summary["runs"][1] |= {"status": "failed", "error": "loss is not finite", "scores": {}, "rollout_tokens": None}
    summary["runs"][1] |= {"cpu_seconds": None, "updates": None, "truncated": None, "tokens_mean": None}
    summary["scores"].pop("block64")
    summary["problems"] = {"lock16": 40}
    return summary


def _arm(name: str) -> dict[str, Any]:
    own = {} if name == "no gate" else {"gate.spans": "block64", "gate.tau": 1.0}
    return {"what": f"LSM, gate: {name}", "recipe": "sandbox/lsm_block64", "settings": own}


def _scores(level: float, draw: np.random.Generator) -> dict[str, Any]:
    def one(middle: float) -> dict[str, float]:
        middle = float(np.clip(middle + draw.normal(0, 0.02), 0.05, 0.97))
        return {"mean": middle, "low": middle - 0.06, "high": min(middle + 0.06, 1.0)}

    return {m: {b: one(level + up) for b in [*BENCHMARKS, "mean"]} for m, up in (("pass@1", -0.1), ("pass@8", 0.15))}


def _comparisons(names: tuple[str, ...], seeds: int, draw: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for measure in ("pass@1", "pass@8"):
        for place, name in enumerate(names[1:]):
            shift = 0.12 if place in (0, 6) else -0.15 if place == 8 else 0.01
            spread = 0.06 if place != 3 else 0.005
            rows.append(_comparison(name, names[0], measure, shift + draw.normal(0, spread, seeds)))
    return rows


def _comparison(arm: str, against: str, measure: str, values: np.ndarray) -> dict[str, Any]:
    se = float(values.std(ddof=1) / math.sqrt(len(values)))
    middle, p = float(values.mean()), min(1.0, 0.6 * math.exp(-abs(values.mean()) / se))
    ends = {
        "low": middle - 2.8 * se,
        "high": middle + 2.8 * se,
        "low_90": middle - 2.1 * se,
        "high_90": middle + 2.1 * se,
    }
    tests = {"p": p, "p_holm": min(1.0, 5 * p), "p_permutation": 0.0625, "least_p_permutation": 0.0625}
    tests |= {"p_equivalence": 1 - p, "p_equivalence_holm": min(1.0, 5 * (1 - p))}
    sizes = {"margin": 0.05, "detectable": 4 * se, "se": se, "df": len(values) - 1.0}
    named = {"arm": arm, "against": against, "measure": measure, "difference": middle}
    return named | ends | tests | sizes | {"per_seed": [float(v) for v in values]}


def _claims(names: tuple[str, ...]) -> list[dict[str, Any]]:
    texts = (
        ("A gate on blocks of 64 tokens helps.", "supported", "+13.1 points [4.0, 22.2], Holm p 0.012, above zero."),
        (
            "A gate on lines of text helps.",
            "undetermined",
            "+1.2 points [-6.0, 8.4] includes 0 and reaches beyond the margin.",
        ),
        (
            "Gates by token equal no gate.",
            "equivalent",
            "+0.9 points [-0.2, 2.0] lies inside the margin of 5.0 points.",
        ),
        ("The inverse gate does no harm.", "refuted", "-15.2 points [-22.1, -8.3], Holm p 0.004, below zero."),
    )
    return [
        {"text": t, "arm": arm, "against": names[0], "measure": "pass@1", "margin": 0.05, "verdict": v, "why": why}
        for (t, v, why), arm in zip(texts, names[1:])
    ]


def _locked(seeds: int) -> list[dict[str, Any]]:
    by_seed = {str(seed): f"{seed + 1:02d}" * 32 for seed in range(seeds)}
    return [
        {"what": "problems shown in training, in their order", "hash": by_seed, "same": True, "differs": []},
        {"what": "examination's problems and answers", "hash": "ab12cd34ef56" + "0" * 52, "same": True, "differs": []},
        {"what": "student's first weights", "hash": "feedc0de1234" + "1" * 52, "same": True, "differs": []},
    ]


def _run(name: str, seed: int, draw: np.random.Generator) -> dict[str, Any]:
    score = {"mean": {"pass@1": float(draw.uniform(0.3, 0.7))}}
    counts = {"rollout_tokens": 300_000 + 1000 * seed, "cpu_seconds": 120.0 + seed, "updates": 200}
    rates = {"truncated": 0.01, "tokens_mean": 190.0}
    return {"arm": name, "seed": seed, "status": "done", "error": None, "scores": score} | counts | rates


def _curve(steps: int, draw: np.random.Generator) -> dict[str, Any]:
    x = np.arange(1, steps + 1)
    share = 0.2 + draw.uniform(0.2, 0.5) * (1 - np.exp(-x / 15)) + draw.normal(0, 0.06, steps)
    return {"step": x.tolist(), "correct": share.clip(0, 1).tolist(), "loss": np.exp(-x / 20).tolist()}


def _gates(place: int, draw: np.random.Generator) -> dict[str, Any]:
    if place == 0:
        return {}
    spread = 0.02 if place < 5 else 0.6 if place == 9 else 0.15
    found = {}
    for number in range(1, 5):
        values = np.exp(-np.abs(draw.normal(0, spread * (number - 1) + 1e-6, 4000)))
        values /= values.mean()
        marks = [[q, float(np.quantile(values, q))] for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)]
        ess = float(values.sum() ** 2 / (values**2).sum() / len(values))
        found[str(number)] = {
            "quantiles": marks,
            "ess": ess,
            "min": float(values.min()),
            "std": float(values.std()),
        }
    return found


def _drift(place: int, draw: np.random.Generator) -> dict[str, Any]:
    size = 0.002 * (1 + place)
    return {str(n): {"abs": size * (n - 1) * draw.uniform(0.9, 1.1), "span": 0.3 * size * (n - 1)} for n in range(1, 5)}
