"""A multiple-choice set out of GSM8K: the right number among three that the solution passes through or nearly is.

    python experiments/choice_set.py --problems gsm8k/train.jsonl --out choice_train.jsonl

A row per problem with an integer answer: `problem` ends with the options (A) to (D), `answer` is the letter, `solution`
the reasoning with the letter behind it. The same problem always gives the same row.
"""

import argparse
import hashlib
import json
import re
from pathlib import Path
from typing import Any

LETTERS = "ABCD"


def options_of(problem: dict[str, Any]) -> list[str]:
    """Four different numbers in an order that the problem's text decides; one of them is the answer."""
    answer = int(problem["answer"].replace(",", ""))
    passed = [int(n.replace(",", "")) for n in re.findall(r"(?<![\d.])\d[\d,]*(?![\d.])", problem["solution"])]
    near = [answer + 10, answer * 2, answer + 1, max(answer - 2, 0), answer + 3, answer + 5]
    wrong = [n for n in dict.fromkeys([*reversed(passed), *near]) if n != answer][:3]
    return [str(n) for n in sorted([answer, *wrong], key=lambda n: _place(problem["problem"], n))]


def _place(text: str, number: int) -> str:
    return hashlib.sha256(f"{text}\n{number}".encode()).hexdigest()


def row_of(problem: dict[str, Any]) -> dict[str, str]:
    options = options_of(problem)
    letter = LETTERS[options.index(problem["answer"].replace(",", ""))]
    shown = "\n".join(f"({name}) {option}" for name, option in zip(LETTERS, options))
    solution = f"{problem['solution'].strip()}\nThe answer is ({letter})."
    return {"id": problem["id"], "problem": f"{problem['problem']}\n\n{shown}", "answer": letter, "solution": solution}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=Path, required=True, help="JSONL with id, problem, answer, solution")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with arguments.problems.open(encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    rows = [row_of(p) for p in problems if re.fullmatch(r"[\d,]+", p["answer"])]
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} problems in {arguments.out}; answers: {[sum(r['answer'] == x for r in rows) for x in LETTERS]}")


if __name__ == "__main__":
    main()
