"""Everything small that a study's report shows, gathered from its run folders into one mapping for summary.json.

The keys are those of the functions below; numbers are fractions of 1, seconds, tokens or nats.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..config import TrainConfig
from ..report.plots import read_metrics
from ..settings import differing, flat
from ..train.sums import QUANTILES
from .compare import Comparison, arm_scores, compare_arms, with_holm
from .config import Claim, Study, settings_of
from .counts import counts_of
from .locked import locked
from .runs import REFERENCES, reference_folder, run_folder, seed_of
from .scores import ScoreTable, read_scores, samples_needed
from .verdict import verdict

VERSIONS = ("driftgate", "torch", "transformers", "numpy", "scipy")


def summary_of(
    name: str, study: Study, configs: Mapping[str, TrainConfig], runs: Path, command: str, seconds: float
) -> dict[str, Any]:
    """Of a study whose runs are in the folder `runs`; those that have not been examined count as failed."""
    rows = [_run(study, arm, seed, run_folder(runs, arm, seed)) for arm in configs for seed in study.seeds]
    whole = [arm for arm in configs if all(row["status"] == "done" for row in rows if row["arm"] == arm)]
    scores = {arm: read_scores([run_folder(runs, arm, seed) for seed in study.seeds]) for arm in whole}
    planned = sum(study.against(arm) != arm for arm in study.arms)
    comparisons = with_holm([c for base in _bases(study) for c in _compare(study, base, scores)], planned)
    done = {
        arm: [run_folder(runs, arm, r["seed"]) for r in rows if r["arm"] == arm and r["status"] == "done"]
        for arm in configs
    }
    problems = {name: list(ids) for name, ids in next(iter(scores.values())).problems.items()} if scores else {}
    return {
        "name": name,
        "what": study.what,
        "command": command,
        "commit": _commit(done),
        "versions": {package: metadata.version(package) for package in VERSIONS},
        "cpus": os.cpu_count(),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(sum(row["cpu_seconds"] or 0.0 for row in rows), 1),
        "steps": configs[study.base].steps,
        "passes": {arm: config.passes for arm, config in configs.items()},
        "seeds": list(study.seeds),
        "samples": study.exam.samples,
        "problems": {name: len(ids) for name, ids in problems.items()},
        "common": flat(study.common),
        "arms": _arms(study, configs),
        "locked": locked(study, done),
        "runs": rows,
        "scores": _scores(study, scores, runs),
        "problem_ids": problems,
        "counts": counts_of(scores, study.seeds),
        "comparisons": [_rounded(asdict(c)) for c in comparisons],
        "claims": [_judged(study, claim, comparisons, rows) for claim in study.claims],
        "curves": {arm: {seed_of(run): _curve(run) for run in folders} for arm, folders in done.items()},
        "gates": {arm: _by_pass(folders, _gates) for arm, folders in done.items()},
        "drift": {arm: _by_pass(folders, _drift) for arm, folders in done.items()},
    }


def _bases(study: Study) -> list[str]:
    return list(dict.fromkeys(study.against(arm) for arm in study.arms))


def _compare(study: Study, base: str, scores: Mapping[str, ScoreTable]) -> list[Comparison]:
    """The arms that are compared with `base`."""
    arms = [arm for arm in study.arms if arm in scores and study.against(arm) == base and arm != base]
    if base not in scores or not arms:
        return []
    return compare_arms({arm: scores[arm] for arm in [base, *arms]}, base, study.measures, study.margin)


def _arms(study: Study, configs: Mapping[str, TrainConfig]) -> dict[str, Any]:
    """What each arm is, and its settings that are not those of the arm that it is compared with, or of the base."""
    described = {}
    for name, arm in study.arms.items():
        against = study.against(name)
        own, base = settings_of(configs[name]), settings_of(configs[against if against != name else study.base])
        described[name] = {
            "what": arm.what,
            "recipe": arm.recipe,
            "settings": {key: own.get(key) for key in differing(own, base)},
        }
    return described


def _run(study: Study, arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """One run's row."""
    row: dict[str, Any] = {"arm": arm, "seed": seed, "status": "failed", "error": None, "scores": {}}
    row |= dict.fromkeys(("rollout_tokens", "cpu_seconds", "updates", "truncated", "tokens_mean"))
    if (folder / "failed.json").is_file():
        return row | {"error": json.loads((folder / "failed.json").read_text())["error"]}
    if not (folder / "done.json").is_file():
        return row | {"error": "not finished"}
    result = json.loads((folder / "eval" / "result.json").read_text())
    scores = {
        group: {
            measure: round(found[f"pass@{samples_needed(measure, study.exam.samples, 'exam')}"]["mean"], 6)
            for measure in study.measures
        }
        for group, found in result["pass"].items()
    }
    costs = [json.loads(line) for line in (folder / "cost.jsonl").read_text().splitlines()]
    return row | {
        "status": "done",
        "scores": scores,
        "rollout_tokens": int(sum(line["tokens"] for line in read_metrics(folder, "rollout"))),
        "cpu_seconds": round(sum(cost["cpu_seconds"] for cost in costs if cost["what"] == "train"), 1),
        "updates": len(read_metrics(folder, "update")),
        "truncated": round(result["truncated"], 6),
        "tokens_mean": round(result["tokens_mean"], 2),
    }


def _scores(study: Study, scores: Mapping[str, ScoreTable], runs: Path) -> dict[str, Any]:
    """By arm, measure and benchmark, with intervals over seeds and problems; of references over problems."""
    found = {
        name: read_scores([reference_folder(runs, name)])
        for name in REFERENCES
        if (reference_folder(runs, name) / "done.json").is_file()
    }
    return {
        arm: {
            measure: {group: _rounded(asdict(value)) for group, value in arm_scores(each, measure).items()}
            for measure in study.measures
        }
        for arm, each in [*scores.items(), *found.items()]
    }


def _judged(
    study: Study, claim: Claim, comparisons: Sequence[Comparison], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A claim with its verdict."""
    against = study.against(claim.arm)
    stated = {"text": claim.text, "arm": claim.arm, "against": against, "measure": claim.measure}
    found = [c for c in comparisons if (c.arm, c.against, c.measure) == (claim.arm, against, claim.measure)]
    if found:
        judged, why = verdict(found[0], claim.says)
    else:
        failed = sum(row["status"] != "done" for row in rows if row["arm"] in (claim.arm, against))
        judged, why = "undetermined", f"{failed} of the runs of {claim.arm} and {against} failed or are not finished"
    return stated | {"says": claim.says, "margin": study.margin, "verdict": judged, "why": why}


def _curve(run: Path) -> dict[str, list[Any]]:
    """By step: the share of right rollouts, and the loss of the step's first update."""
    rollouts = read_metrics(run, "rollout")
    first = {line["step"]: line.get("loss") for line in read_metrics(run, "update") if line["update"] == 1}
    return {
        "step": [line["step"] for line in rollouts],
        "correct": [_short(line.get("correct")) for line in rollouts],
        "loss": [_short(first.get(line["step"])) for line in rollouts],
    }


def _by_pass(folders: Sequence[Path], of: Any) -> dict[str, Any]:
    """`of` the updates of each pass of all runs."""
    updates = [line for folder in folders for line in read_metrics(folder, "update")]
    passes = sorted({line["pass"] for line in updates})
    found = {str(number): of([line for line in updates if line["pass"] == number]) for number in passes}
    return {number: value for number, value in found.items() if value is not None}


def _gates(updates: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Weights divided by their mean, averaged over updates; None where nothing is weighed."""
    names = [f"gate_q{100 * q:02.0f}" for q in QUANTILES]
    weighed = [line for line in updates if names[0] in line]
    if not weighed:
        return None
    quantiles = [[q, _mean(weighed, name)] for q, name in zip(QUANTILES, names)]
    shape = {key: _mean(weighed, f"gate_{key}") for key in ("ess", "min", "std")}
    return {"quantiles": quantiles, **shape}


def _drift(updates: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    measured = [line for line in updates if "drift_abs" in line]
    if not measured:
        return None
    return {"abs": _mean(measured, "drift_abs"), "span": _mean(measured, "drift_span")}


def _mean(lines: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [line[key] for line in lines if key in line]
    return _short(float(np.mean(values))) if values else None


def _short(value: float | None) -> float | None:
    """Five digits, which is more than a plot shows."""
    return None if value is None else float(f"{value:.5g}")


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Floats to six digits."""

    def shorter(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.6g}")
        return [shorter(each) for each in value] if isinstance(value, (list, tuple)) else value

    return {key: shorter(value) for key, value in values.items()}


def _commit(done: Mapping[str, Sequence[Path]]) -> str | None:
    """Of the code that made the runs; several are joined, one with changes is marked."""
    found = []
    for folder in (folder for folders in done.values() for folder in folders):
        for session in json.loads((folder / "environment.json").read_text()):
            git = session.get("git")
            found.append(git["commit"] + (" with changes" if git["changed"] else "") if git else None)
    return ", ".join(sorted({commit for commit in found if commit})) or None
