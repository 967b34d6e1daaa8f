"""What the gate is of a step, from the CPU-seconds of the step's parts."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Sequence[float]]
"""CPU-seconds of a step: of all of it ("step"), and of each call of its parts."""
Costs = tuple[float, float]
"""Seconds once a step, and in each update."""
ONCE = ("rollout", "behaviour", "teacher")
"""Parts that come once in a step, whatever its passes."""


def gate_costs(record: Record) -> Costs:
    """The gate's arithmetic."""
    return sum(record["spans"]), update_cost(record, "weights") + update_cost(record, "sums")


def logp_costs(record: Record) -> Costs:
    """The log-probabilities that only the gate reads."""
    return sum(record["behaviour"]), update_cost(record, "logp")


COSTS: dict[str, Callable[[Record], Costs]] = {
    "arithmetic": gate_costs,
    "log-probability passes": logp_costs,
    "of which behaviour pass": lambda record: (logp_costs(record)[0], 0.0),
    "of which pass in the update": lambda record: (0.0, logp_costs(record)[1]),
    "drift metric": lambda record: (0.0, update_cost(record, "drift_metric")),
}


def update_cost(record: Record, part: str) -> float:
    """CPU-seconds of a part in an update."""
    return sum(record[part]) / len(record["update"])


def passes_cost(record: Record, passes: int) -> float:
    """CPU-seconds of a step with so many passes."""
    return record["step"][0] - sum(record["update"][passes:])


def step_figures(records: Sequence[Record], passes: int) -> dict[str, Any]:
    """Median CPU-seconds of a step's parts and of an update, and the gate's shares at `passes` and at all passes."""
    parts = {name: statistics.median(sum(record[name]) for record in records) for name in ONCE}
    parts["update"] = statistics.median(update_cost(record, "update") for record in records)
    updates = len(records[0]["update"]) * len(records)
    shares = {name: shares_of(records, passes, costs) for name, costs in COSTS.items()}
    return {"cpu_s": parts, "passes": passes, "updates_measured": updates, "shares": shares}


def shares_of(records: Sequence[Record], passes: int, costs: Callable[[Record], Costs]) -> dict[str, float]:
    """Shares of a step of `passes` and of one of all passes, and of an update: median and range over steps."""
    split, most = [costs(record) for record in records], len(records[0]["update"])

    def of_step(count: int) -> list[float]:
        return [(once + count * each) / passes_cost(r, count) for r, (once, each) in zip(records, split)]

    of_update = [each / update_cost(r, "update") for r, (_, each) in zip(records, split)]
    return {
        "cpu_s_once": statistics.median(once for once, _ in split),
        "cpu_s_update": statistics.median(each for _, each in split),
        **spread_of(of_step(passes), "of_step"),
        f"of_step_{most}_passes": statistics.median(of_step(most)),
        **spread_of(of_update, "of_update"),
    }


def spread_of(values: Sequence[float], name: str, prefix: str | None = None) -> dict[str, float]:
    """Median as `name`, and the range as PREFIX_least and PREFIX_most. prefix: `name` by default, may be empty."""
    start = f"{name}_" if prefix is None else prefix
    return {name: statistics.median(values), f"{start}least": min(values), f"{start}most": max(values)}


def ungated_figures(records: Sequence[Record]) -> dict[str, Any]:
    """CPU-seconds of an update of a run without a gate, and of the gate's functions there."""
    medians = {
        "update": statistics.median(update_cost(record, "update") for record in records),
        "arithmetic": statistics.median(gate_costs(record)[1] for record in records),
    }
    return {"ungated_cpu_s": medians}
