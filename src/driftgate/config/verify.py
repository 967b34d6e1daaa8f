"""What decides whether an answer is right, as settings: one group a kind."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, TypeAdapter, model_validator

from ..settings import NonNegativeFloat, Settings
from .shorthand import by_kind


def compiled(pattern: str) -> str:
    """The same. Raises ValueError for what is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression of Python ({error})") from None
    return pattern


def _module_and_function(path: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", path):
        raise ValueError("write module:function, such as checks:right for the function `right` of checks.py")
    return path


class VerifierSettings(Settings):
    """What all kinds share."""

    @property
    def needs_answer(self) -> bool:
        """Whether a problem without an answer has no verdict."""
        return True


class MathSettings(VerifierSettings):
    """Mathematics: the last box equals the answer, by the rule in docs/evaluation.md."""

    kind: Literal["math"] = "math"


class ExactSettings(VerifierSettings):
    """Text: a part of the response equals the answer, character by character, without the white space around both."""

    kind: Literal["exact"]
    part: Literal["all", "box"] = "all"
    """What is compared: the whole response, or the content of its last box."""
    after: str | None = Field(default=None, min_length=1)
    """A marker such as "####": compared is the rest of the line behind its last place. A response without it is
    wrong."""
    fold_case: bool = False
    """Upper and lower case are the same."""

    @model_validator(mode="after")
    def _one_part(self) -> "ExactSettings":
        if self.part == "box" and self.after is not None:
            raise ValueError("part = box and after both say what is compared; take one of the two out")
        return self


class NumberSettings(VerifierSettings):
    """Number: the last number of the response, or of its last box where it has one, is compared with the answer's."""

    kind: Literal["number"]
    tolerance: NonNegativeFloat = 0.0
    """Largest difference that is still right, in the answer's unit. 0 compares exactly."""


class ChoiceSettings(VerifierSettings):
    """Multiple choice: the one letter, A to Z, that the response names is the answer's."""

    kind: Literal["choice"]


class RegexSettings(VerifierSettings):
    """Regular expression of Python: found anywhere in the response, in a process of its own."""

    kind: Literal["regex"]
    pattern: Annotated[str, AfterValidator(compiled)] | None = None
    """Of all problems, which then need no answer; null takes each problem's answer as its pattern."""
    seconds: PositiveFloat = 5.0
    """A search that takes longer is wrong."""

    @property
    def needs_answer(self) -> bool:
        return self.pattern is None


class JsonSchemaSettings(VerifierSettings):
    """JSON schema: the response's last JSON value is valid, in a process of its own. Needs the extra `verify`."""

    kind: Literal["json_schema"]
    file: str | None = None
    """A JSON file with the schema of all problems; null takes each problem's answer as its schema."""
    equal: bool = False
    """The value must also equal the problem's answer, which is JSON then; only with `file`."""
    seconds: PositiveFloat = 5.0
    """A validation that takes longer is wrong."""

    @model_validator(mode="after")
    def _equal_to_something(self) -> "JsonSchemaSettings":
        if self.equal and self.file is None:
            raise ValueError("equal = true with file = null: the answer is the schema then; give the schema as file")
        return self

    @property
    def needs_answer(self) -> bool:
        return self.file is None or self.equal


class FunctionSettings(VerifierSettings):
    """A function of yours: called with the response's text and the problem's answer, in a process of its own."""

    kind: Literal["function"]
    path: Annotated[str, AfterValidator(_module_and_function)]
    """module:function. The module is looked for in the folder where the command runs, then among what is installed.
    The function returns True or False."""
    seconds: PositiveFloat = 5.0
    """A call that takes longer is wrong, and its process is ended."""
    memory_gib: PositiveFloat = 2.0
    """Address space of the process, in GiB, where the system can bound it."""


class CodeSettings(VerifierSettings):
    """Code: the response's last block of Python passes the problem's tests, in limited processes of its own."""

    kind: Literal["code"]
    seconds: PositiveFloat = 10.0
    """Wall time of a run: of all assertions, or of a program on one input. A longer run is wrong."""
    memory_gib: Annotated[float, Field(ge=0.125)] = 1.0
    """Address space of each process, in GiB, where the system can bound it."""
    workers: PositiveInt = 2
    """How many answers run at a time. An answer takes two processes, of which one works."""


VerifySettings = Annotated[
    Annotated[
        MathSettings
        | ExactSettings
        | NumberSettings
        | ChoiceSettings
        | RegexSettings
        | JsonSchemaSettings
        | FunctionSettings
        | CodeSettings,
        Field(discriminator="kind"),
    ],
    BeforeValidator(by_kind),
]

_ANY: TypeAdapter[VerifySettings] = TypeAdapter(VerifySettings)


def verify_settings(value: Any) -> VerifySettings:
    """Settings from what a run's config.yaml holds. Raises pydantic's ValidationError."""
    return _ANY.validate_python(value)
