"""Pages made from the code: docs/configuration.md and docs/functions.md. `make docs` rewrites them.

python docs/generate.py [--check]
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import driftgate
from driftgate.config import TrainConfig
from driftgate.recipe import shipped_recipes

HERE = Path(__file__).parent
MADE = "<!-- Made by docs/generate.py; change the docstrings instead. -->\n\n"


def configuration() -> str:
    """Every setting with its default and meaning, and the shipped recipes."""
    lines = ["# Settings\n"]
    lines.append(
        "A recipe is a YAML mapping of these; `extends: NAME` begins from another recipe. On the command line "
        "`key.sub=value` changes one. Whatever is not set has the default shown.\n"
    )
    lines += ["| setting | default | meaning |", "|---|---|---|", *rows(TrainConfig, "")]
    lines += ["\n## Shipped recipes\n", "| recipe | |", "|---|---|"]
    lines += [f"| `{name}` | {line} |" for name, line in shipped_recipes().items()]
    return MADE + "\n".join(lines) + "\n"


def rows(model: type[BaseModel], prefix: str) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        groups = [kind for kind in kinds(field) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        for group in groups:
            label = f" (with kind `{get_args(group.model_fields['kind'].annotation)[0]}`)" if len(groups) > 1 else ""
            lines.append(f"| **`{prefix}{name}`**{label} | | {cell(group.__doc__ if len(groups) > 1 else '')} |")
            lines += rows(group, f"{prefix}{name}.")
        if not groups:
            lines.append(f"| `{prefix}{name}` | {default(field)} | {cell(field.description)} |")
    return lines


def kinds(field: FieldInfo) -> list[Any]:
    annotation = field.annotation
    return (
        list(get_args(annotation))
        if get_origin(annotation) not in (dict, tuple) and get_args(annotation)
        else [annotation]
    )


def default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return "null" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


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


PAGES = {"configuration.md": configuration, "functions.md": functions}


def main() -> None:
    stale = [name for name, make in PAGES.items() if not (HERE / name).is_file() or (HERE / name).read_text() != make()]
    if "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(stale)}; run make docs" if stale else 0)
    for name in stale:
        (HERE / name).write_text(PAGES[name]())
        print(f"docs/{name} rewritten")


if __name__ == "__main__":
    main()
