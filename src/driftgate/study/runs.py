"""Where a study keeps its runs."""

from pathlib import Path

REFERENCES = ("student, before", "teacher")
"""Models that no arm trains, examined for comparison."""
REFERENCE_FOLDER = "references"


def run_folder(runs: Path, arm: str, seed: int) -> Path:
    return runs / arm / f"seed-{seed}"


def reference_folder(runs: Path, name: str) -> Path:
    return runs / REFERENCE_FOLDER / name.replace(", ", "-")


def seed_of(run: Path) -> str:
    """Of a run's folder."""
    return run.name.removeprefix("seed-")
