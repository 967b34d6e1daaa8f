"""From settings to a verifier."""

from collections.abc import Mapping

from ..config.verify import (
    ChoiceSettings,
    CodeSettings,
    ExactSettings,
    FunctionSettings,
    JsonSchemaSettings,
    MathSettings,
    NumberSettings,
    RegexSettings,
    VerifySettings,
)
from ..errors import InputError
from .choice import Choice
from .code import Code
from .exact import Exact
from .function import Function
from .grading import Grader
from .json_schema import JsonSchema
from .number import WithinTolerance
from .regex import Regex
from .verifier import Verifier


def verifier_of(settings: VerifySettings) -> Verifier:
    """Its process, if it has one, starts with the first response that needs it."""
    match settings:
        case MathSettings():
            return Grader()
        case ExactSettings():
            return Exact(settings)
        case NumberSettings():
            return WithinTolerance(settings)
        case ChoiceSettings():
            return Choice()
        case RegexSettings():
            return Regex(settings)
        case JsonSchemaSettings():
            return JsonSchema(settings)
        case FunctionSettings():
            return Function(settings)
        case CodeSettings():
            return Code(settings)


def check_answers(settings: VerifySettings, answers: Mapping[str, str | None], where: str) -> None:
    """Whether responses can be compared with every answer that there is, by problem. Raises InputError that names
    `where`, the problem and its answer."""
    with verifier_of(settings) as verifier:
        for problem, answer in answers.items():
            if answer is None:
                continue
            try:
                verifier.check(answer)
            except ValueError as error:
                raise InputError(
                    f"{where}: verify.kind = {settings.kind}, but the answer {answer!r:.80} of problem {problem!r} "
                    f"{error}; mend it, or choose another kind"
                ) from None
