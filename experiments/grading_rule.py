"""How many verdicts of evaluations change when their texts are graded again with the rule of this version.

    python experiments/grading_rule.py --exam "few-shot"=exams/a --exam "solution shown"=exams/b --made-with 8f6a272

In results/grading_rule.json, plain, few_shot and solution_shown are four answers each of SmolLM2-135M-Instruct to 100
test problems of GSM8K (`driftgate eval smol/SmolLM2-135M-Instruct --chat`, one CPU thread). In few_shot the template
shows two worked problems whose boxes have units; in solution_shown each problem ends with "Solution: " and its
reference solution. sandbox_* are the embedded pair on its four benchmarks.

The folders are those of `driftgate eval`; `correct` in their samples.jsonl is the verdict of the version that made
them. Prints each box whose verdict changed. Writes results/grading_rule.json.
"""

import argparse
import json
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from driftgate.verify.boxed import canonical_integer, last_boxed
from driftgate.verify.grading import Grader

OUT = Path("results/grading_rule.json")


def compared(folder: Path) -> dict[str, Any]:
    """Counts of an evaluation's verdicts, old and new, and every box on which they differ."""
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    with Grader() as grader:
        verdicts = grader.grade_many([(row["text"], row["gold"]) for row in rows])
        asked = grader.math.asked
    boxes = [last_boxed(row["text"]) for row in rows]
    differing = Counter(
        (box, row["gold"], row["correct"], verdict)
        for box, row, verdict in zip(boxes, rows, verdicts)
        if row["correct"] != verdict
    )
    keys = ("box", "gold", "before", "now", "samples")
    return {
        "settings": json.loads((folder / "eval.json").read_text())["settings"],
        "samples": len(rows),
        "with_a_box": sum(box is not None for box in boxes),
        "plain_integer_in_the_box": sum(box is not None and canonical_integer(box) is not None for box in boxes),
        "right_before": sum(row["correct"] for row in rows),
        "right_now": sum(verdicts),
        "asked_of_math_verify": asked,
        "changed": [dict(zip(keys, (*case, count))) for case, count in sorted(differing.items())],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exam", action="append", required=True, help="NAME=FOLDER of an evaluation")
    parser.add_argument("--made-with", required=True, help="commit whose rule gave the verdicts in the folders")
    arguments = parser.parse_args()
    exams = dict(exam.split("=", 1) for exam in arguments.exam)
    report = {
        "command": " ".join(["python", "experiments/grading_rule.py", *sys.argv[1:]]),
        "versions": {name: metadata.version(name) for name in ("math-verify", "sympy", "torch", "transformers")},
        "before": f"the rule of commit {arguments.made_with}",
        "exams": {name: compared(Path(folder)) for name, folder in exams.items()},
    }
    OUT.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    for name, exam in report["exams"].items():
        print(name, {key: value for key, value in exam.items() if key not in ("settings", "changed")})
        print(*exam["changed"], sep="\n")


if __name__ == "__main__":
    main()
