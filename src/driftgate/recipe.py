"""Reads a recipe by name or file, applies `key.sub=value` overrides, and checks it: the result is a `TrainConfig`."""

import difflib
import runpy
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from .config import TrainConfig
from .errors import InputError
from .settings import Settings

Group = TypeVar("Group", bound=BaseModel)
SHIPPED = resources.files("driftgate") / "recipes"


FAMILY = "sandbox/"
"""Recipes of this family have counterparts of the same name in others, with other models, prompts and sizes."""


class About(Settings):
    """A recipe's description of itself."""

    what: str
    """What it does, in one line."""
    source: str = "ours"
    """The work that it follows."""
    evidence: str = "ours"
    """P the paper's text, C its public code, N notes by readers only; ours where there is no source."""
    open: str | None = None
    """What the source leaves open or does otherwise, and the choice made here."""


def shipped_recipes() -> dict[str, About]:
    """Name -> description, for every recipe in the package."""
    return {name: About.model_validate(parse_yaml(_text(name), f"recipe {name}")["about"]) for name in recipe_names()}


@cache
def recipe_names() -> list[str]:
    """Names of all recipes in the package, sorted. Cached, because the package does not change while it runs."""
    with resources.as_file(SHIPPED) as folder:
        return sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))


def load_recipe(name: str, overrides: list[str] | None = None, family: str | None = None) -> TrainConfig:
    """The configuration of a shipped recipe (`sandbox/lsm_block64`) or YAML file, with overrides applied in order.

    family: where the recipe extends one of `sandbox/...`, extend the recipe of the same name in this family, with its
    models, prompts and sizes. With "qwen3", `repairs/iw_opd` extends `qwen3/sampled_token_none`.
    Raises InputError for an unknown recipe, family, setting or value.
    """
    values = load_values(name, family)
    for override in overrides or []:
        _apply(values, override)
    run_code(values.get("code"))
    return check_config(values)


def load_values(name: str, family: str | None = None) -> dict[str, Any]:
    """The settings of a recipe, with those of the recipes that it extends; not checked. See `load_recipe`."""
    values: dict[str, Any] = {}
    for part in reversed(_chain(name, family)):
        values = merge(values, part)
    return values


@cache
def run_code(path: str | None) -> None:
    """Run the user's Python file of the setting `code`, so that the signals that it defines are known; once in a
    process, however often settings are checked. Raises InputError."""
    if path is None:
        return
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"code = {path!r}: no such file; give a Python file, relative to where the command runs")
    try:
        runpy.run_path(str(file))
    except (Exception, SystemExit) as error:
        raise InputError(f"code = {path!r}: fails when it is run: {type(error).__name__}: {error}") from error


def check_config(values: dict[str, Any]) -> TrainConfig:
    """Validate settings. Raises InputError with one line per problem: the setting, its value and the fix.

    It runs no code of the user's: see `run_code`.
    """
    return checked(TrainConfig, values)


def checked(model: type[Group], values: dict[str, Any]) -> Group:
    """See `check_config`, for any group of settings."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_line(problem, model) for problem in error.errors())) from None


def _chain(name: str, family: str | None) -> list[dict[str, Any]]:
    """The recipe's own values, then those of the recipe that it `extends`, and so on to the last."""
    names: list[str] = []
    parts: list[dict[str, Any]] = []
    wanted: str | None = name
    while wanted is not None:
        if wanted in names:
            raise InputError(f"recipe {wanted}: extends itself, through {' and '.join(names)}; change one `extends`")
        names.append(wanted)
        values = parse_yaml(_text(_in_family(wanted, family)), f"recipe {wanted}")
        values.pop("about", None)
        base = values.pop("extends", None)
        parts.append(values)
        wanted = None if base is None else str(base)
    if family is not None and not any(part.startswith(FAMILY) for part in names):
        raise InputError(
            f"--family {family}: {name} does not extend a recipe of {FAMILY}, so it has no effect; leave it out"
        )
    return parts


def _in_family(name: str, family: str | None) -> str:
    """The recipe's counterpart in the family for a recipe of `FAMILY`, else its own name."""
    if family is None or not name.startswith(FAMILY):
        return name
    counterpart = f"{family}/{name.removeprefix(FAMILY)}"
    if counterpart not in recipe_names():
        families = sorted({known.partition("/")[0] for known in recipe_names() if known.endswith("/lsm_none")})
        raise InputError(f"--family {family}: there is no {counterpart}; families are {', '.join(families)}")
    return counterpart


def _text(name: str) -> str:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"recipe {name}: there is no such file; check the path")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"recipe {name}: not UTF-8 text; save it as UTF-8") from None
    shipped = recipe_names()
    if name not in shipped:
        near = difflib.get_close_matches(name, shipped, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"recipe {name}: unknown; {hint}`driftgate recipes` lists them, or give a .yaml file")
    return (SHIPPED / f"{name}.yaml").read_text()


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """A mapping of settings. Raises InputError for invalid YAML or no mapping; the message begins with `name`."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{name}: must be a mapping of settings, is {type(values).__name__}")
    return values


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change`. A group of another `kind` has other settings, so it replaces `base` whole."""
    if change.get("kind", base.get("kind")) != base.get("kind"):
        return change
    merged = dict(base)
    for key, value in change.items():
        both_maps = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both_maps else value
    return merged


def _apply(values: dict[str, Any], override: str) -> None:
    """Set `key.sub=value` in place. The value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r}: write key=value, such as gate.tau=10")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:  # a group that is off, as a run's config.yaml has it
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise InputError(f"override {override!r}: {parent} is a value, not a group of settings")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"override {override!r}: the value is not valid YAML; quote it") from None
    if last == "kind" and value != values.get("kind"):
        values.clear()
    values[last] = value


def _line(problem: Any, model: type[BaseModel]) -> str:
    """One pydantic problem as `setting = value: what is wrong; fix`."""
    path = ".".join(_without_tags(problem["loc"]))
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path, setting_names(model), n=1, cutoff=0.5)
        return f"{path}: unknown setting; " + (f"did you mean {near[0]}?" if near else "see docs/configuration.md")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "union_tag_not_found":
        return f"{path}.kind: missing; set {path}.kind=..., see docs/configuration.md"
    if problem["type"] == "missing":
        return f"{path}: missing; set {path}=..."
    if problem["type"] == "tuple_type":
        return f"{path} = {problem['input']!r}: must be a list; set {path}=[{problem['input']}]"
    shown = "" if isinstance(problem["input"], dict) else f" = {problem['input']!r}"
    message = f"{message[:1].lower()}{message[1:]}"
    return f"{path}{shown}: {message}" if path else message


def _without_tags(parts: tuple[int | str, ...]) -> list[str]:
    """A path in the settings, without the union member's name that pydantic puts after the union's own name."""
    unions = ("objective", "partition", "map", "signal", "coef", "verify", "shape")
    names = ("weights", "terms", "mix")
    places = zip(("", "", *parts), ("", *parts), parts)
    return [str(part) for before, last, part in places if last not in unions or before in names]


COPIES = ("terms.NAME.objective.", "terms.NAME.weights.NAME.", "teachers.NAME.", "prompts.mix.NAME.verify.")
"""Groups with the settings of `objective`, `weights.NAME`, `teacher` and `prompts.verify`."""


def setting_names(model: type[BaseModel] = TrainConfig, prefix: str = "") -> list[str]:
    """Every dotted name, with those of groups and of all members of unions."""
    names = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        named = f"{prefix}{name}.NAME." if get_origin(field.annotation) is dict else f"{prefix}{name}."
        if named in COPIES:
            continue
        for group in groups_of(field.annotation):
            names += setting_names(group, named)
    return list(dict.fromkeys(names))


def groups_of(annotation: Any) -> list[type[BaseModel]]:
    """The groups of settings that a field holds: its own type, the members of a union, the values of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [group for part in get_args(annotation) for group in groups_of(part)]
