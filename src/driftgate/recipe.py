"""From a recipe's name or file and `key.sub=value` overrides to a checked `TrainConfig`."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from .config import TrainConfig
from .errors import InputError

SHIPPED = resources.files("driftgate") / "recipes"


def shipped_recipes() -> dict[str, str]:
    """Name -> first comment line of every recipe in the package."""
    with resources.as_file(SHIPPED) as folder:
        files = sorted(folder.rglob("*.yaml"))
        return {str(f.relative_to(folder).with_suffix("")): f.read_text().splitlines()[0].lstrip("# ") for f in files}


def load_recipe(name: str, overrides: list[str] | None = None) -> TrainConfig:
    """The configuration of a shipped recipe (`sandbox/lsm_block64`) or YAML file, with overrides applied in order.

    Raises InputError for an unknown recipe, setting or value.
    """
    values = _read(name)
    for override in overrides or []:
        _apply(values, override)
    return check_config(values)


def check_config(values: dict[str, Any]) -> TrainConfig:
    """Validate; each problem becomes a line that names the setting, its value and the mend."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_line(problem) for problem in error.errors())) from None


def _read(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """YAML mapping of a recipe; `extends` names the recipe whose values it changes."""
    if name in seen:
        raise InputError(f"recipe {name}: extends itself, by way of {' and '.join(seen)}")
    values = _parse(_text(name), name)
    base = values.pop("extends", None)
    return _merge(_read(str(base), (*seen, name)), values) if base is not None else values


def _text(name: str) -> str:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"recipe {name}: there is no such file")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"recipe {name}: not UTF-8 text") from None
    shipped = shipped_recipes()
    if name not in shipped:
        near = difflib.get_close_matches(name, shipped, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"recipe {name}: unknown; {hint}`driftgate recipes` lists them, or give a .yaml file")
    return (SHIPPED / f"{name}.yaml").read_text()


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"recipe {name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"recipe {name}: must be a mapping of settings, is {type(values).__name__}")
    return values


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` over `base`; a group of another kind replaces the group whole, as its settings are others."""
    if change.get("kind", base.get("kind")) != base.get("kind"):
        return change
    merged = dict(base)
    for key, value in change.items():
        both_maps = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both_maps else value
    return merged


def _apply(values: dict[str, Any], override: str) -> None:
    """Set `key.sub=value` in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r}: write key=value, for instance gate.tau=10")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"override {override!r}: {parent} is a value, not a group of settings")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"override {override!r}: the value is not valid YAML; quote it") from None
    if last == "kind" and value != values.get("kind"):
        values.clear()
    values[last] = value


def _line(problem: Any) -> str:
    """One pydantic problem as `setting = value: what is wrong; mend`."""
    path = ".".join(str(part) for part in problem["loc"] if part not in ("sampled_token", "lsm"))
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path, setting_names(), n=1, cutoff=0.5)
        return f"{path}: unknown setting; " + (f"did you mean {near[0]}?" if near else "see docs/configuration.md")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{path}: missing; set {path}=..."
    shown = "" if isinstance(problem["input"], dict) else f" = {problem['input']!r}"
    return f"{path}{shown}: {message[:1].lower()}{message[1:]}"


def setting_names(model: type[BaseModel] = TrainConfig, prefix: str = "") -> list[str]:
    """Every dotted name, groups and the members of unions included."""
    names = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names += setting_names(kind, f"{prefix}{name}.")
    return names
