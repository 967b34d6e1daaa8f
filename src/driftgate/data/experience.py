"""A rollout batch with everything that learning from it needs; can be saved in the middle of a step.

Shapes: B sequences, N valid response tokens of the batch in sequence order (the flat stream), K support tokens.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..method.scores import Scored, TokenScores
from ..world import Alone, World
from .packing import MicroBatch, dealt, nothing, pack
from .prompts import Prompt
from .response import Response

PLAIN = ("finished", "written", "engine_logp")
OPTIONAL = ("correct", "group", "group_mean", "group_std", "teacher")
SCORERS = ("behaviour", "teacher", "initial")


@dataclass(frozen=True)
class Experience:
    """Tensors live on the CPU; micro-batches move what they need."""

    prompts: list[Tensor]
    """int64 [P_b] each, as the student saw them."""
    teacher_prompts: list[Tensor]
    """int64 [P'_b] each, as the teacher sees them."""
    responses: list[Tensor]
    """int64 [R_b] each, the stop token included."""
    keep: list[Tensor]
    """bool [R_b] each: the tokens that are in the flat stream."""
    finished: Tensor
    """bool [B]: False where the response was cut at the limit."""
    written: Tensor
    """bool [B]: False for a reference solution in the place of a response."""
    engine_logp: Tensor
    """float32 [N]: the engine's own log-probabilities, in nats; for the mismatch metric only."""
    version: int = 0
    """Optimiser updates that the weights had seen which wrote the responses; see `Learner.version`."""
    scores: Scored = field(default_factory=Scored)
    """What the student that wrote the rollout, the teacher and the initial student say of the tokens."""
    unscored: tuple[int, ...] = ()
    """Sequences whose old log-probabilities are not in `scores` yet: the first update finds them (`with_behaviour`)."""
    correct: Tensor | None = None
    """float [N]: 1 where the verifier accepts the token's response, else 0; None without verdicts."""
    group: Tensor | None = None
    """int64 [N]: the prompt that the token's response answers."""
    group_mean: Tensor | None = None
    """float64 [N]: mean verdict on the responses that the student wrote to the prompt, those without a token in the
    stream included; None without verdicts."""
    group_std: Tensor | None = None
    """float64 [N]: their standard deviation, with n - 1; 0 for one response."""
    teacher: Tensor | None = None
    """int64 [B]: number of each sequence's teacher (`Prompt.teacher`); None where there is one teacher for all."""
    rows: Tensor = field(init=False)
    """int64 [N]: the sequence of each token."""
    starts: list[int] = field(init=False)
    """Place of each sequence's first token in the stream."""
    ids: Tensor = field(init=False)
    """int64 [N]: the sampled token ids y_t."""
    place: Tensor = field(init=False)
    """int64 [N]: index of each token among its sequence's tokens in the stream."""

    def __post_init__(self) -> None:
        counts = torch.tensor([int(kept.sum()) for kept in self.keep])
        object.__setattr__(self, "rows", torch.repeat_interleave(counts))
        object.__setattr__(self, "ids", torch.cat([r[k] for r, k in zip(self.responses, self.keep)]))
        starts = counts.cumsum(0) - counts
        object.__setattr__(self, "starts", starts.tolist())
        object.__setattr__(self, "place", torch.arange(len(self.rows)) - starts[self.rows])

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt],
        responses: Sequence[Sequence[Response]],
        drop_tokens: Sequence[int] = (),
        version: int = 0,
    ) -> "Experience":
        """Each prompt's responses as a batch without scores, learned from by a student that had `version` updates.

        Tokens of `drop_tokens`, and those that another model wrote at a response's head, stay out of the stream.
        """
        pairs = [(prompt, response) for prompt, group in zip(prompts, responses) for response in group]
        dropped = torch.tensor(drop_tokens, dtype=torch.int64)
        ids = [torch.tensor(response.ids, dtype=torch.int64) for _, response in pairs]
        keep = [~torch.isin(part, dropped) for part in ids]
        for kept, (_, response) in zip(keep, pairs):
            kept[: response.prefix] = False
        return cls(
            prompts=[torch.tensor(prompt.ids) for prompt, _ in pairs],
            teacher_prompts=[torch.tensor(prompt.teacher_ids) for prompt, _ in pairs],
            responses=ids,
            keep=keep,
            finished=torch.tensor([response.finished for _, response in pairs]),
            written=torch.tensor([not response.reference for _, response in pairs]),
            engine_logp=torch.cat([torch.tensor(r.logprobs)[kept] for (_, r), kept in zip(pairs, keep)]),
            version=version,
            teacher=_teachers_of([prompt for prompt, _ in pairs]),
        )

    def with_scores(self, **scores: TokenScores) -> "Experience":
        """The same rollouts with the scores of `behaviour`, `teacher` or `initial`. What objectives have found from
        others is forgotten."""
        return replace(self, scores=replace(self.scores, ahead={}, **scores))

    def with_groups(self, groups: Tensor, verdicts: Tensor | None = None) -> "Experience":
        """The same rollouts with each response's prompt, int64 [B] without gaps, and the verdict on it, float [B];
        None where there are no verdicts."""
        batch = replace(self, group=groups[self.rows])
        if verdicts is None:
            return batch
        mean, std = _mean_and_std(verdicts[self.written], groups[self.written], int(groups.max()) + 1)
        spread = {"group_mean": mean[groups][self.rows], "group_std": std[groups][self.rows]}
        return replace(batch, correct=verdicts[self.rows], **spread)

    def with_behaviour(self, logp: Tensor) -> "Experience":
        """The same rollouts with the old log-probabilities of the `unscored` sequences: logp float [their tokens]."""
        before = self.scores.behaviour.logp
        whole = torch.zeros(len(self.ids), dtype=logp.dtype) if before is None else before.clone()
        whole[self.tokens_of(self.unscored)] = logp
        return replace(self.with_scores(behaviour=replace(self.scores.behaviour, logp=whole)), unscored=())

    def readable(self, name: str) -> Tensor:
        """[N, ...]: what a signal reads under this name (`method.signals.READABLE`). Raises KeyError where it is not
        scored."""
        behaviour, teacher = self.scores.behaviour, self.scores.teacher
        values = {
            "behaviour_logp": behaviour.logp,
            "behaviour_entropy": behaviour.entropy,
            "student_top_ids": behaviour.top_ids,
            "student_top_logp": behaviour.top_logp,
            "teacher_logp": teacher.logp,
            "teacher_entropy": teacher.entropy,
            "teacher_top_ids": teacher.top_ids,
            "teacher_top_logp": teacher.top_logp,
            "teacher_at_student": teacher.at_ids,
            "correct": self.correct,
            "group": self.group,
            "group_mean": self.group_mean,
            "group_std": self.group_std,
        }
        if (value := values[name]) is None:
            raise KeyError(f"{name} has not been scored")
        return value

    @property
    def lengths(self) -> list[int]:
        """Tokens of each response that the student wrote."""
        return [len(response) for response, written in zip(self.responses, self.written.tolist()) if written]

    def tokens_of(self, sequences: Sequence[int]) -> Tensor:
        """int64: places in the flat stream of the tokens of some sequences, in order of the sequences."""
        return torch.isin(self.rows, torch.tensor(sequences, dtype=torch.int64)).nonzero().flatten()

    def micro_batches(
        self,
        sequences: Sequence[int],
        token_budget: int,
        device: torch.device,
        teacher: bool = False,
        world: World | None = None,
    ) -> Iterator[MicroBatch]:
        """This rank's share of the forwards that cover `sequences`, behind the student's or the teacher's prompts; as
        many as every other rank makes.

        A sequence none of whose tokens is in the stream needs no forward.
        """
        world = world or Alone()
        sequences = [i for i in sequences if self.keep[i].any()]
        prompts = self.teacher_prompts if teacher else self.prompts
        lengths = [len(p) + len(r) for p, r in zip(prompts, self.responses)]
        for group in map(sorted, dealt(lengths, sequences, token_budget, world.rank, world.size)):
            if not group:
                yield nothing(device)
                continue
            chosen = ([part[i] for i in group] for part in (prompts, self.responses, self.keep, self.starts))
            yield pack(*chosen, device=device)  # type: ignore[arg-type]

    def save(self, path: Path) -> None:
        """One safetensors file."""
        lists = {
            "prompts": self.prompts,
            "teacher_prompts": self.teacher_prompts,
            "responses": self.responses,
        }
        tensors = {name: torch.cat(parts) for name, parts in {**lists, "keep": self.keep}.items()}
        tensors |= {f"{name}.lengths": torch.tensor([len(p) for p in parts]) for name, parts in lists.items()}
        for scorer in SCORERS:
            found = getattr(self.scores, scorer).items()
            tensors |= {f"scores.{scorer}.{name}": value.contiguous() for name, value in found}
        tensors |= {name: getattr(self, name) for name in PLAIN}
        tensors |= {name: value for name in OPTIONAL if (value := getattr(self, name)) is not None}
        about = {"version": self.version, "unscored": self.unscored}
        save_file(tensors, path, metadata={name: json.dumps(value) for name, value in about.items()})

    @classmethod
    def load(cls, path: Path) -> "Experience":
        """What `save` wrote."""
        tensors = load_file(path)
        lists = {
            name: list(tensors[name].split(tensors[f"{name}.lengths"].tolist()))
            for name in ("prompts", "teacher_prompts", "responses")
        }
        keep = list(tensors["keep"].split(tensors["responses.lengths"].tolist()))
        plain = {name: tensors[name] for name in (*PLAIN, *OPTIONAL) if name in tensors}
        scores = [TokenScores(**_with_prefix(tensors, f"scores.{scorer}.")) for scorer in SCORERS]
        with safe_open(path, "pt") as file:
            about = {name: json.loads(value) for name, value in file.metadata().items()}
        known = {"version": about["version"], "unscored": tuple(about["unscored"]), "scores": Scored(*scores)}
        return cls(**lists, keep=keep, **known, **plain)  # type: ignore[arg-type]


def _mean_and_std(values: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """float64 [count] each: mean and standard deviation (n - 1) of the values of each group; 0 for an empty one."""
    wide, zeros = values.double(), torch.zeros(count, dtype=torch.float64)
    size = zeros.index_add(0, groups, torch.ones_like(wide))
    mean = zeros.index_add(0, groups, wide) / size.clamp(min=1)
    squares = zeros.index_add(0, groups, (wide - mean[groups]).square())
    return mean, (squares / (size - 1).clamp(min=1)).sqrt()


def _teachers_of(prompts: Sequence[Prompt]) -> Tensor | None:
    numbers = [prompt.teacher for prompt in prompts]
    return None if not numbers or None in numbers else torch.tensor(numbers, dtype=torch.int64)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
