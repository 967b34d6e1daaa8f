"""The `compare` command: folders in, table and sentences out."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..errors import InputError
from ..files import json_rows
from .compare import Comparison, arm_scores, compare_arms
from .scores import ScoreTable, read_scores
from .verdict import interval_90, p_text, points, verdict, with_interval


def run_compare(
    folders: Sequence[str],
    seeds: str | None,
    measures: Sequence[str],
    margin: float,
    out: Path | None,
    console: Console,
) -> None:
    """Compare folders[1:] with folders[0]; print a table and a sentence for each, and write all of it to `out`."""
    arms = read_arms(folders, seeds)
    base = next(iter(arms))
    comparisons = compare_arms(arms, base, measures, margin)
    console.print(comparison_table(comparisons))
    if any(measure.startswith("avg@") for measure in measures):
        console.print("avg@n is the mean over all n samples, and so the same as pass@1.")
    sentences = {(c.measure, c.arm): verdict(c, "better") for c in comparisons}
    for (measure, arm), (word, why) in sentences.items():
        console.print(f"{arm} better than {base} in {measure}: {word}. {why}", highlight=False, soft_wrap=True)
    if out is not None:
        rows = [asdict(c) | dict(zip(("verdict", "why"), sentences[c.measure, c.arm])) for c in comparisons]
        _write(
            out,
            {
                "seeds": seeds,
                "folders": dict(zip(arms, folders)),
                "scores": _scores(arms, measures),
                "comparisons": rows,
            },
        )
        console.print(f"all of it in {out}", highlight=False)


def read_arms(folders: Sequence[str], seeds: str | None) -> dict[str, ScoreTable]:
    """One arm for each folder, by its short name; folders hold `{seed}` where `seeds` ("0,1,2") is given.

    Raises InputError.
    """
    if len(set(folders)) < len(folders):
        raise InputError(f"{', '.join(folders)}: an arm is given twice")
    numbers = seeds.split(",") if seeds is not None else [""]
    if len(set(numbers)) < len(numbers) or (seeds is not None and not all(n.strip().isdecimal() for n in numbers)):
        raise InputError(f"--seeds {seeds}: give different whole numbers with commas between them, such as 0,1,2")
    for folder in folders:
        if ("{seed}" in folder) != (seeds is not None):
            raise InputError(
                f"{folder}, --seeds {seeds}: write {{seed}} in every folder where --seeds is given, such as "
                "'runs/none/seed-{seed}', and only there"
            )
    names = short_names([Path(folder) for folder in folders])
    return {
        name: read_scores([Path(folder.replace("{seed}", number.strip())) for number in numbers])
        for name, folder in zip(names, folders)
    }


def short_names(paths: Sequence[Path]) -> list[str]:
    """What of each path is not common to all, from the left and from the right; the whole where that leaves nothing."""
    least = min(len(path.parts) for path in paths)
    columns, ends = zip(*(p.parts[:least] for p in paths)), zip(*(p.parts[: -least - 1 : -1] for p in paths))
    left, right = (sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, each)) for each in (columns, ends))
    names = ["/".join(path.parts[left : len(path.parts) - right]) for path in paths]
    return names if all(names) and len(set(names)) == len(names) else [str(path) for path in paths]


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """A row per measure and arm; differences in percentage points."""
    first = comparisons[0]
    covers = "over seeds and problems" if len(first.per_seed) > 1 else "over problems only"
    title = f"minus {first.against}, in points [95 % interval {covers}]"
    table = Table("measure", "arm", "difference", "p", "Holm", title=title)
    table.add_column("permutation (least)")
    table.add_column("90 % interval")
    table.add_column(f"equal within {points(first.margin, '')}, p (Holm)")
    table.add_column("detectable")
    table.add_column("bootstrap")
    for c in comparisons:
        table.add_row(*_cells(c))
    return table


def _cells(c: Comparison) -> list[str]:
    """One row: what is tested shows "-" where nothing can be."""
    cells = [c.measure, c.arm, with_interval(c), p_text(c.p), p_text(c.p_holm)]
    if c.p_permutation is None or c.detectable is None:
        return [*cells, "-", "-", "-", "-", "-"]
    low, high = c.bootstrap_low, c.bootstrap_high
    return [
        *cells,
        f"{p_text(c.p_permutation)} ({p_text(c.least_p_permutation)})",
        interval_90(c),
        f"{p_text(c.p_equivalence)} ({p_text(c.p_equivalence_holm)})",
        points(c.detectable, ""),
        "-" if low is None or high is None else f"[{points(low)}, {points(high)}]",
    ]


def _scores(arms: dict[str, ScoreTable], measures: Sequence[str]) -> dict:
    """{arm: {measure: {benchmark or "mean": {"mean", "low", "high"}}}}"""
    return {
        arm: {m: {name: asdict(e) for name, e in arm_scores(scores, m).items()} for m in measures}
        for arm, scores in arms.items()
    }


def _write(out: Path, content: dict) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json_rows(content) + "\n")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written to ({error.strerror}); choose another file") from None
