"""What a signal is averaged over, as settings; the spans themselves are in `method.spans`."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..settings import Settings


class TokenPartition(Settings):
    """Every token by itself."""

    kind: Literal["token"] = "token"


class BlockPartition(Settings):
    """Blocks of `size` tokens from a response's first; `block64` for short."""

    kind: Literal["block"] = "block"
    size: PositiveInt = 64
    """Tokens of a block."""


class NewlinePartition(Settings):
    """Lines of text."""

    kind: Literal["newline"] = "newline"
    min_tokens: PositiveInt = 16
    """A shorter line joins the next."""
    max_tokens: PositiveInt = 128
    """A longer line is cut."""
    size: PositiveInt = 64
    """Blocks of a response without any newline."""

    @model_validator(mode="after")
    def _bounds(self) -> "NewlinePartition":
        check_bounds(self.min_tokens, self.max_tokens)
        return self


class SequencePartition(Settings):
    """A whole response."""

    kind: Literal["sequence"] = "sequence"


class ChangepointPartition(Settings):
    """Spans between change points of the drift's mean (ours)."""

    kind: Literal["changepoint"] = "changepoint"
    min_tokens: PositiveInt = 16
    """Shortest span."""
    penalty: PositiveFloat = 2.0
    """Price of a cut, in units of the noise variance times log(tokens of the response)."""


class PrefixPartition(Settings):
    """All tokens of the response up to this one; reduced by sum, mean or share."""

    kind: Literal["prefix"] = "prefix"
    exclusive: bool = False
    """Leave the token itself out."""


Partition = Annotated[
    TokenPartition | BlockPartition | NewlinePartition | SequencePartition | ChangepointPartition | PrefixPartition,
    Field(discriminator="kind"),
]


def check_bounds(min_tokens: int, max_tokens: int) -> None:
    """Of newline spans. Raises ValueError where the upper bound is below the lower one."""
    if max_tokens < min_tokens:
        raise ValueError(f"max_tokens {max_tokens} is below min_tokens {min_tokens}; raise max_tokens")
