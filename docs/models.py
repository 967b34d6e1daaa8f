"""The page of models: `models.j2` filled in from what `benchmarks/models.py` left; part of `docs/generate.py`."""

import json
from pathlib import Path

import benchmarks
import jinja2

HERE = Path(__file__).parent


def page() -> str:
    """Every architecture with how its rollouts are decoded and what a step costs."""
    found = json.loads((benchmarks.RESULTS / "models.json").read_text())
    heading = ("architecture", "class in transformers", "attention", "rollouts by", "time of a decoding step")
    rows = [
        (name, f"`{one['class']}`", one["attention"], one["way"], benchmarks.spread(one))
        for name, one in found["figures"].items()
    ]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    table, how = benchmarks.table(heading, rows), benchmarks.how(found)
    return environment.from_string((HERE / "models.j2").read_text()).render(**found, table=table, how=how)
