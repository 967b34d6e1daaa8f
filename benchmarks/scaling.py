"""How cost and memory grow with each size, one varied at a time, and what the gate is of a whole step.

    python benchmarks/scaling.py [--repeats 3] [--quick]

The head, forward and backward, along tokens, vocabulary and support. The gate's arithmetic along tokens and block size.
A step of training (rollout, scoring, updates) along passes, on the embedded pair. On that pair and on a wider model,
what the gate costs: its arithmetic, and the log-probabilities that only it reads. Growth is the slope of a line through
the logarithms, with its standard error and the range of the slopes of single rounds.
Writes benchmarks/results/scaling.json and scaling.png.
"""

import time
from dataclasses import asdict
from typing import Any

import measure
import torch
from scaling_sizes import QUICK, Sizes


def main() -> None:
    arguments = measure.parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    sizes, repeats = (QUICK if arguments.quick else Sizes()), arguments.repeats or (1 if arguments.quick else 3)
    began, found = time.time(), measured(sizes, repeats)
    path = measure.write("scaling", began, arguments.quick, ("transformers",), sizes=asdict(sizes), **found)

    import scaling_plots

    scaling_plots.draw(found, path.with_suffix(".png"))


def measured(sizes: Sizes, repeats: int) -> dict[str, Any]:
    """All figures."""
    # here and not above: each process that measures memory loads this file, and would need seconds for the others
    from growth import print_growth, rounded
    from scaling_head import along, gate_alone, memory_noise
    from scaling_steps import step_costs

    found: dict[str, Any] = {}
    for name, rounds in {
        "tokens": min(repeats, sizes.tokens_rounds),
        "vocabulary": repeats,
        "support": repeats,
    }.items():
        found[name] = along(name, sizes, rounds)
        print_growth(found[name])
    found["gate"] = gate_alone(sizes, 5 * repeats, found["tokens"]["cpu_s"]["gated LSM, ours"])
    print_growth(found["gate"])
    if sizes.noise:
        found["memory_noise_mb"] = memory_noise(sizes)
    return rounded(found | step_costs(sizes, repeats))


if __name__ == "__main__":
    main()
