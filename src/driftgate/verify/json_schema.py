"""JSON that is valid by a schema."""

import json
from pathlib import Path

from ..config.verify import JsonSchemaSettings
from ..errors import InputError
from .process import JudgeProcess
from .verifier import Verifier

MEMORY_BYTES = 2**30


class JsonSchema(Verifier):
    """Right where the response's JSON value is valid by the schema and, with `equal`, is the problem's answer.

    The value is the last fenced block or, without one, the whole response or the last object or list in it. A fenced
    block that is no JSON is wrong. Equality is JSON's: 1 is 1.0, and true is not 1. The schema is the setting's file or
    the problem's answer; without "$schema" it is of draft 2020-12. References to other files are not followed.
    Raises InputError for a file that is missing or holds no schema, and without the package jsonschema.
    """

    votes = False

    def __init__(self, settings: JsonSchemaSettings) -> None:
        try:
            import jsonschema  # noqa: F401
        except ImportError:
            raise InputError(
                "verify.kind = json_schema: needs the extra `verify`: pip install 'driftgate[verify]', or in a clone "
                ".venv/bin/pip install -e '.[verify]'"
            ) from None
        self.equal, self.needs_answer = settings.equal, settings.needs_answer
        self.schema = None if settings.file is None else _read(settings.file)
        self.worker = JudgeProcess(["schema"], ["1", "{}", "1"], settings.seconds, MEMORY_BYTES)

    def __exit__(self, *error: object) -> None:
        self.worker.close()

    def check(self, gold: str) -> None:
        if self.schema is None:
            check_schema(gold)
        elif self.equal:
            parsed(gold)

    def grade(self, text: str, gold: str | None) -> bool:
        schema = gold if self.schema is None else self.schema
        wanted = gold if self.equal else None
        return schema is not None and self.worker.ask(text, schema, wanted)


def _read(file: str) -> str:
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
        check_schema(text)
    except OSError as error:
        raise InputError(f"verify.file = {file}: cannot be read ({error.strerror}); give a JSON file") from None
    except ValueError as error:
        raise InputError(f"verify.file = {file}: {error}; give a JSON schema") from None
    return text


def parsed(text: str) -> object:
    """Raises ValueError for a text that is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error})") from None


def check_schema(text: str) -> None:
    """Raises ValueError for a text that is no JSON schema."""
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for

    schema = parsed(text)
    if not isinstance(schema, dict):
        raise ValueError("is no JSON schema, which is an object")
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"is no JSON schema ({error.message})") from None
