"""Pages made from code (settings, recipes, signals, functions) and results (benchmarks); `make docs` rewrites them.

python docs/generate.py [--check]
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import benchmarks
import findings
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import driftgate
from driftgate.config import TrainConfig
from driftgate.method import signals as known
from driftgate.recipe import groups_of, load_recipe, shipped_recipes
from driftgate.study.config import Study
from driftgate.train.setup import learns_from_solutions, needs_verifier

HERE = Path(__file__).parent
MADE = "<!-- Made by docs/generate.py; change the docstrings instead. -->\n\n"


def configuration() -> str:
    """Every setting with its default and meaning."""
    lines = ["# Settings\n"]
    lines.append(
        "A recipe is a YAML mapping of these; `extends: NAME` begins from another recipe, and `about` (what, source, "
        "evidence, open) says what it is. On the command line `key.sub=value` changes one setting. Whatever is not set "
        "has the default shown. `NAME` is a name of your choice. Where a group comes in kinds, its own `kind` chooses "
        "one. The signals that a weight can look at are in [signals.md](signals.md), the shipped recipes in "
        "[recipes.md](recipes.md).\n"
    )
    head = ["| setting | default | meaning |", "|---|---|---|"]
    lines += [*head, *rows(TrainConfig, ""), "\n## Of a study\n", "See [studies.md](studies.md).\n"]
    lines += [*head, *rows(Study, "")]
    return MADE + "\n".join(lines) + "\n"


AS_ABOVE = {"terms.NAME.objective": "objective", "terms.NAME.weights": "weights"}
"""Groups that the page describes once."""


def rows(model: type[BaseModel], prefix: str) -> list[str]:
    """A row for each setting of a group, those of the groups in it included."""
    return [row for name, field in model.model_fields.items() for row in field_rows(prefix + name, field)]


def field_rows(setting: str, field: FieldInfo) -> list[str]:
    groups, named = groups_of(field.annotation), get_origin(field.annotation) is dict
    below = f"{setting}.NAME" if named and groups else setting
    if setting in AS_ABOVE:
        return [f"| **`{setting}`** | {default(field)} | As `{AS_ABOVE[setting]}`. |"]
    lines = []
    if field.description or not groups:
        lines.append(f"| `{setting}` | {default(field)} | {cell(field.description)}{choice(field.annotation)} |")
    if len(groups) == 1:
        return [*lines, f"| **`{below}`** | | {cell(groups[0].__doc__)} |", *rows(groups[0], f"{below}.")]
    if groups:
        kinds = ", ".join(f"`{kind_of(group)}`" for group in groups)
        lines.append(f"| `{below}.kind` | {default(field)} | One of {kinds}. |")
    for group in groups:
        lines.append(f"| **`{below}`** (kind `{kind_of(group)}`) | | {cell(group.__doc__)} |")
        lines += [row for row in rows(group, f"{below}.") if not row.startswith(f"| `{below}.kind` |")]
    return lines


def choice(annotation: Any) -> str:
    """A sentence that names the values, where only certain words are allowed."""
    words = [json.dumps(word).strip('"') for word in words_of(annotation)]
    return f" One of {', '.join(f'`{word}`' for word in words)}." if len(words) > 1 else ""


def words_of(annotation: Any) -> list[Any]:
    """All words of the Literals in an annotation, and null beside them where that is allowed."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    parts = [word for part in get_args(annotation) for word in words_of(part)]
    return [*parts, None] if parts and type(None) in get_args(annotation) else parts


def kind_of(group: type[BaseModel]) -> str:
    return get_args(group.model_fields["kind"].annotation)[0]


def default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
        return f"`{kind}`" if kind else ""
    if value == "":
        return "empty"
    return "null" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def recipes() -> str:
    """Every shipped recipe with what it says of itself."""
    lines = ["# Shipped recipes\n"]
    lines.append(
        "`driftgate train NAME --out runs/mine` trains one; `--family qwen3` takes the models, prompts and sizes of "
        "`qwen3/...` for a recipe that is written on the embedded pair. What such a recipe sets itself (limits, ramps "
        "over steps, a support's k) is sized for the embedded pair and stays; look at it before a long run. Evidence: "
        "P the paper's text, C its public code, N notes by readers only. Reads: what your `prompts.path` needs on each "
        "line beside `problem`. What a source leaves open, or does otherwise, is in the last column.\n"
    )
    lines += [
        "| recipe | what it does | source | evidence | reads | left open or otherwise |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {cell(about.what)} | {cell(about.source)} | {about.evidence} | {read_of_problems(name)} | "
        f"{cell(about.open)} |"
        for name, about in shipped_recipes().items()
    ]
    return MADE + "\n".join(lines) + "\n"


def read_of_problems(recipe: str) -> str:
    """What a recipe needs of each problem beside its text."""
    config = load_recipe(recipe)
    shown = config.teacher.context or ""
    needed = {"answer": needs_verifier(config), "solution": learns_from_solutions(config)}
    return ", ".join(f"`{name}`" for name, needs in needed.items() if needs or f"{{{name}}}" in shown)


def signals() -> str:
    """Every signal with its meaning and what it reads."""
    lines = ["# Signals\n", inspect.cleandoc(known.__doc__ or "") + "\n"]
    lines += ["| signal | meaning | reads |", "|---|---|---|"]
    for name, described in known.SIGNALS.items():
        reads = ", ".join(f"`{stream}`" for stream in described.reads)
        lines.append(f"| `{name}` | {cell(described.meaning)} | {reads} |")
    lines += ["\nWhat can be read:\n", "| stream | |", "|---|---|"]
    lines += [f"| `{name}` | {cell(meaning)} |" for name, meaning in known.READABLE.items()]
    return MADE + "\n".join(lines) + "\n"


def cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|") if text and not text.startswith("Usage") else ""


def functions() -> str:
    """Signature and docstring of every public function."""
    lines = ["# Public functions\n", inspect.cleandoc(driftgate.__doc__ or "") + "\n"]
    for name in driftgate.__all__:
        function = getattr(driftgate, name)
        signature = str(inspect.signature(function)).replace("torch.Tensor", "Tensor").replace("typing.", "")
        lines.append(f"## {name}\n\n```python\n{name}{signature}\n```\n\n{inspect.cleandoc(function.__doc__)}\n")
    return MADE + "\n".join(lines)


PAGES = {
    "configuration.md": configuration,
    "recipes.md": recipes,
    "signals.md": signals,
    "functions.md": functions,
    "benchmarks.md": benchmarks.page,
    **findings.pages(),
}


def main() -> None:
    stale = [name for name, make in PAGES.items() if not (HERE / name).is_file() or (HERE / name).read_text() != make()]
    if "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(stale)}; run make docs" if stale else 0)
    for name in stale:
        (HERE / name).write_text(PAGES[name]())
        print(f"docs/{name} rewritten")


if __name__ == "__main__":
    main()
