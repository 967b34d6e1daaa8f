"""Pages made from code (settings, recipes, signals, functions) and results (benchmarks); `make docs` rewrites them.

python docs/generate.py [--check]
"""

import inspect
import json
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import benchmarks
import findings
import models
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import driftgate
from driftgate.config import TrainConfig
from driftgate.method import signals as known
from driftgate.recipe import About, groups_of, load_recipe, shipped_recipes
from driftgate.study.config import Study
from driftgate.train.checks import learns_from_solutions, needs_verifier

HERE = Path(__file__).parent
WIDTH = 118
"""Columns of a generated text."""
MADE = "<!-- Made by docs/generate.py; change the docstrings instead. -->\n\n"


def configuration() -> str:
    """Every setting with its default and meaning."""
    lines = ["# Settings\n"]
    lines += paragraph(
        "A recipe is a YAML mapping of these; `extends: NAME` begins from another recipe, and `about` (what, source, "
        "evidence, open) says what it is. On the command line `key.sub=value` changes one setting. Whatever is not set "
        "has the default shown. `NAME` is a name of your choice. Where a group comes in kinds, its own `kind` chooses "
        "one. The signals that a weight can look at are in [signals.md](signals.md), the shipped recipes in "
        "[recipes.md](recipes.md)."
    )
    lines += ["", "## Of a run\n", *rows(TrainConfig, "")]
    lines += ["", "## Of a study\n", "See [studies.md](studies.md).\n", *rows(Study, "")]
    return MADE + "\n".join(lines) + "\n"


AS_ABOVE = {
    "teachers": "teacher",
    "terms.NAME.objective": "objective",
    "terms.NAME.weights": "weights",
    "exam.verify": "prompts.verify",
    "prompts.mix.NAME.verify": "prompts.verify",
}
"""Groups that the page describes once."""


def rows(model: type[BaseModel], prefix: str) -> list[str]:
    """An entry for each setting of a group; those of the groups in it follow, each group under a heading."""
    plain, groups = [], []
    for name, field in model.model_fields.items():
        own, below = field_rows(prefix + name, field)
        plain += own
        groups += below
    return [*plain, *groups]


def field_rows(setting: str, field: FieldInfo) -> tuple[list[str], list[str]]:
    """The entry of a setting itself, and the headings and entries of the groups that it holds."""
    groups, named = groups_of(field.annotation), get_origin(field.annotation) is dict
    below = f"{setting}.NAME" if named and groups else setting
    if setting in AS_ABOVE:
        return entry(setting, field, f"{text_of(field.description)} As `{AS_ABOVE[setting]}`.".strip()), []
    if not groups:
        return entry(setting, field, text_of(field.description) + choice(field.annotation)), []
    own = entry(setting, field, text_of(field.description)) if field.description else []
    if len(groups) == 1:
        return own, group_rows(f"`{below}`", groups[0], below, own)
    kinds = ", ".join(f"`{kind_of(group)}`" for group in groups)
    found = [f"\n### `{below}`\n", *entry(f"{below}.kind", field, f"One of {kinds}.")]
    for group in groups:
        found += group_rows(f"`{below}` (kind `{kind_of(group)}`)", group, below, own)
    return own, [line for line in found if line]


def group_rows(title: str, group: type[BaseModel], below: str, own: list[str]) -> list[str]:
    """A heading, what the group is, and its settings but its kind."""
    about = paragraph(text_of(group.__doc__))
    inside = rows(group, f"{below}.")
    kind = next((place for place, line in enumerate(inside) if line.startswith(f"- `{below}.kind`")), None)
    if kind is not None and "(kind" in title:
        end = next((n for n in range(kind + 1, len(inside)) if not inside[n].startswith("  ")), len(inside))
        inside = inside[:kind] + inside[end:]
    return [f"\n### {title}\n", *about, *([""] if about and inside else []), *inside]


def entry(setting: str, field: FieldInfo, text: str) -> list[str]:
    """A list item, wrapped: the setting, its default, what it means."""
    shown = default(field)
    shown = f" ({shown})" if shown == "required" else f" (default {shown})" if shown else ""
    return item(f"`{setting}`{shown}" + (f": {text}" if text else ""))


def item(text: str) -> list[str]:
    return textwrap.wrap(f"- {text}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def text_of(text: str | None) -> str:
    """A docstring on one line."""
    return " ".join((text or "").split()) if text and not text.startswith("Usage") else ""


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
    lines += paragraph(
        "`driftgate train NAME --out runs/mine` trains one; `--family qwen3` takes the models, prompts and sizes of "
        "`qwen3/...` for a recipe that is written on the embedded pair. What such a recipe sets itself (limits, ramps "
        "over steps, a support's k) is sized for the embedded pair and stays; look at it before a long run."
    )
    lines += ["", *paragraph("Evidence: P the paper's text, C its public code, N notes by readers only.")]
    room = None
    for name, about in shipped_recipes().items():
        if name.rpartition("/")[0] != room:
            room = name.rpartition("/")[0]
            lines.append(f"\n## {room or 'On real weights'}\n")
        lines += recipe_rows(name, about)
    return MADE + "\n".join(lines) + "\n"


def recipe_rows(name: str, about: About) -> list[str]:
    """What a recipe does and follows; then what is left open or done otherwise."""
    reads = read_of_problems(name)
    follows = [f"Source: {about.source}." if about.source != "ours" else "Ours."]
    follows += [f"Evidence: {about.evidence}."] if about.evidence != "ours" else []
    follows += [f"Your problems need {reads}."] if reads else []
    lines = item(f"**`{name}`**: {text_of(about.what)} {' '.join(follows)}")
    otherwise = item(f"Left open or done otherwise: {text_of(about.open)}") if about.open else []
    return [*lines, *(f"  {line}" for line in otherwise)]


def read_of_problems(recipe: str) -> str:
    """What a recipe needs of each problem beside its text."""
    config = load_recipe(recipe)
    shown = " ".join(teacher.context or "" for teacher in config.teacher_roles.values())
    needed = {"answer": needs_verifier(config), "solution": learns_from_solutions(config)}
    return ", ".join(f"`{name}`" for name, needs in needed.items() if needs or f"{{{name}}}" in shown)


def signals() -> str:
    """Every signal with its meaning and what it reads."""
    lines = ["# Signals\n", inspect.cleandoc(known.__doc__ or "") + "\n", "## The signals\n"]
    for name, described in known.SIGNALS.items():
        reads = ", ".join(f"`{read}`" for read in described.reads)
        lines += item(f"`{name}`: {text_of(described.meaning)}" + (f" Reads {reads}." if reads else ""))
    lines += ["\n## What can be read\n", "| stream | |", "|---|---|"]
    lines += [f"| `{name}` | {text_of(meaning)} |" for name, meaning in known.READABLE.items()]
    return MADE + "\n".join(lines) + "\n"


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
    "models.md": models.page,
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
