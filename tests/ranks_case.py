"""Rollout, scores and four or more gated updates of several recipes, by as many ranks as the environment says.

    python tests/ranks_case.py CASES.json OUT

CASES.json: name -> settings. Each rank trains them all; rank 0 writes OUT: responses, metrics, weights, scores.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from driftgate.ranks import end_process, joined
from driftgate.recipe import check_config
from driftgate.train.build import build_run
from driftgate.train.folder import final_model
from driftgate.train.loop import timed_update
from driftgate.train.portions import schedule

LAYOUT = {"seconds", "padding"}
"""Metrics that depend on how the work is cut."""


def trained(settings, out, world):
    """What must not depend on the number of ranks."""
    config = check_config(settings)
    run = build_run(config, out, world)
    out.mkdir(parents=True, exist_ok=True)
    batch, metrics = run.source.take(run.position), []
    for update in schedule(config, 0):
        updated = timed_update(run, batch, update)
        batch.add_behaviour(updated.old_logp)
        metrics.append({name: value for name, value in updated.metrics.items() if name not in LAYOUT})
    if world.size > 1:
        run.policy.reshard()
    weights = {name: whole(p.detach()) for name, p in run.policy.named_parameters()}
    shares = [p.to_local().numel() if world.size > 1 else p.numel() for p in run.learner.parameters]
    responses = {name: [r.tolist() for r in part.responses] for name, part in batch.responses.items()}
    rollout = {name: value for name, value in batch.metrics.items() if not name.startswith("seconds")}
    scores = dict(batch.student.scores.behaviour.items()), dict(batch.student.scores.teacher.items())
    return {
        "saved": saved(run, weights),
        "responses": responses,
        "rollout": rollout,
        "scores": scores,
        "metrics": metrics,
        "weights": weights,
        "share": sum(shares),
    }


def saved(run, weights):
    """Whether a checkpoint holds these weights, although they change as soon as `save` returns."""
    run.position.step = 1
    run.save()
    with torch.no_grad():
        for parameter in run.learner.parameters:
            parameter.add_(1)
    run.finish()
    run.world.share(None)  # rank 0 is done too
    found = {}
    for path in final_model(run.out).glob("*.safetensors"):
        found |= load_file(path)
    return all(torch.equal(value, weights[f"model.{name}"]) for name, value in found.items())


def whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value.clone()


def main(cases, out):
    torch.set_num_threads(1)
    with joined() as world:
        found = {
            name: trained(settings, Path(out).parent / f"runs-{world.size}" / name, world)
            for name, settings in json.loads(Path(cases).read_text()).items()
        }
        shares = world.share({name: case["share"] for name, case in found.items()})
        if world.rank == 0:
            torch.save(found | {"shares": shares}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_process(0)
