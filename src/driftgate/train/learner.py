"""One weighted optimiser update, exact under any split into micro-batches.

The loss is a sum of terms, L = sum_k coef_k * sum_t w_kt l_kt / D_k. D_k is the number of tokens of the term's
responses in the whole optimiser batch, times the mean of each factor that is to have mean 1 over it.

These means are known only after the last micro-batch. With one term, its gradient is summed up unscaled and divided
once before the optimiser step, at no extra forward. With several terms, or with weights that look across sequences,
the weights are found before the first backward: from scores at hand, else by a forward without gradient.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.packing import MicroBatch
from ..errors import RunError
from ..method.scores import Needs
from ..models.policy import Policy
from ..scorers.score_tokens import score_tokens
from ..world import Alone, World
from .determinism import repeatable_backward
from .losses import Heads
from .portions import Portion
from .sums import Sums
from .terms import Terms
from .update import Ahead, Update
from .weighing import Moment, weighed_ahead


@dataclass(frozen=True)
class Updated:
    """What an update gives back."""

    metrics: dict[str, float]
    old_logp: Tensor | None = None
    """float [tokens of the sequences that were `Experience.unscored`]: their old log-probabilities."""


class Learner:
    """Holds the student, its optimiser and its schedule."""

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        updates: int,
        target_heads: Heads | None = None,
        world: World | None = None,
    ):
        """updates: optimiser updates of the whole run, where the schedule ends. target_heads: output heads
        of "teacher" and "initial", for divergences over the vocabulary."""
        self.config, self.policy, self.world = config, policy, world or Alone()
        self.terms = Terms(config, target_heads or {})
        settings = config.optimizer
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, settings.lr, settings.betas, settings.eps, settings.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: self._lr_factor(n, updates))

    @property
    def version(self) -> int:
        """Optimiser updates that the weights have seen since the run began. A rollout's age is this less the version
        that wrote it."""
        return self.schedule.last_epoch

    def state_dict(self) -> dict[str, Any]:
        """Optimiser and schedule; the weights are saved apart. With several ranks the optimiser's moments are too."""
        optimizer = self.optimizer.state_dict()
        if self.world.size > 1:
            optimizer["state"] = {}
        return {"optimizer": optimizer, "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for the optimiser of a model of another shape."""
        moments = state["optimizer"]["state"]
        for number, parameter in enumerate(self.parameters):
            if number in moments and moments[number]["exp_avg"].shape != parameter.shape:
                raise ValueError(f"{list(moments[number]['exp_avg'].shape)} instead of {list(parameter.shape)}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What is trained, by the names that the model has for it."""
        return [(name, p) for name, p in self.policy.model.named_parameters() if p.requires_grad]

    def free_gradients(self) -> None:
        """Give the gradients' memory back, for instance to a rollout."""
        self.optimizer.zero_grad()

    def update(self, portions: Mapping[str, Portion], moment: Moment, diagnose: bool = False) -> Updated:
        """One optimiser step on a portion of each group of responses ("student", ...). `diagnose` measures more, at the
        cost of a second forward and backward. Raises RunError where loss or gradient is not finite."""
        work = Update(self.config.terms_at(moment.step), portions, moment, diagnose)
        plain = self._plain_norm(work) if diagnose else None
        self._weigh_ahead(work)
        sums = self._accumulate(work)
        lr = self.schedule.get_last_lr()[0]
        norm = self._step(work, sums)
        metrics = _metrics(work, sums) | {f"tau.{name}": value for name, value in work.tau.items()}
        if diagnose:
            metrics["grad_norm_ratio"] = norm / plain if plain else 1.0
        forwards = self.world.sum({"positions": work.positions, "padding": work.padding})
        metrics |= {"padding": forwards["padding"] / max(forwards["positions"], 1), "grad_norm": norm, "lr": float(lr)}
        return Updated(metrics, work.found_old_logp(self.world))

    def _accumulate(self, work: Update) -> dict[str, Sums]:
        """Forward and backward of every micro-batch. Returns each term's sums."""
        self.optimizer.zero_grad()
        sums = {name: Sums(work.ahead[name].denominator if name in work.ahead else None) for name in work.terms}
        for responses, portion in work.portions.items():
            for micro in self._micro_batches(portion):
                loss, totals = self.policy(micro, self.terms.finish(work, responses, micro))
                with repeatable_backward():
                    loss.backward()
                work.positions += micro.input_ids.numel()
                work.padding += micro.padding
                for name, (values, weighed) in totals.items():
                    sums[name].add(values, weighed)
        return {name: part.over(self.world) for name, part in sums.items()}

    def _micro_batches(self, portion: Portion) -> Iterator[MicroBatch]:
        """This rank's share."""
        budget, device = self.config.microbatch_tokens, self.policy.device
        return portion.batch.micro_batches(portion.sequences, budget, device, world=self.world)

    def _weigh_ahead(self, work: Update) -> None:
        """Find the weights of the terms that need all of the optimiser batch's before the backward; every rank finds
        all of them."""
        logp: Tensor | None = None
        for name, term in work.terms.items():
            portion = work.portions.get(term.responses)
            if portion is None or not len(portion.tokens) or not weighed_ahead(term, len(work.terms)):
                continue
            tokens, live = portion.tokens, None
            if "logp" in term.reads_of_weights:
                logp = self._live_logp(portion, work) if logp is None else logp
                live = logp[tokens]
            weighed = self.terms.weigh(work, name, tokens, live, torch.device("cpu"))
            sums = Sums()
            sums.add({}, weighed)
            weight, raw = (torch.zeros(len(portion.batch.ids), dtype=w.dtype) for w in (weighed.weight, weighed.raw))
            weight[tokens], raw[tokens] = weighed.weight, weighed.raw
            work.ahead[name] = Ahead(weight, raw, sums.denominator(term, f"term {name}"))

    def _live_logp(self, portion: Portion, work: Update) -> Tensor:
        """log p(y_t) of the current student, float [tokens of the group] on the CPU. At age 0 these are the old
        log-probabilities, where they have been scored."""
        scored = portion.batch.scores.behaviour.logp
        if work.fresh and scored is not None:
            return scored
        ids, temperature = portion.batch.ids[:, None], self.config.rollout.temperature
        found = score_tokens(self.policy, self._micro_batches(portion), ids, Needs(logp=True), temperature, self.world)
        assert found.logp is not None
        return found.logp[:, 0]

    def _step(self, work: Update, sums: dict[str, Sums]) -> float:
        """Divide the gradient where that had to wait, clip it, step. Returns the norm before clipping.

        Without a token (all were dropped) there is no gradient, and only the schedule moves on.
        """
        if not any(part.totals for part in sums.values()):
            self.optimizer.step()  # changes nothing; the schedule expects it
            self.schedule.step()
            return 0.0
        for name, part in sums.items():
            if not math.isfinite(part.totals.get("loss", 0.0)):
                raise RunError(f"the loss is {part.totals['loss']}" + (f" (term {name})" if name != "main" else ""))
        self._divide(work, sums)
        norm = whole_value(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip_norm))
        if not math.isfinite(norm):
            raise RunError(f"the gradient norm is {norm}")
        self.optimizer.step()
        self.schedule.step()
        return norm

    def _divide(self, work: Update, sums: dict[str, Sums]) -> None:
        """Divide the summed gradient by the denominator, which is known only now; where nothing was kept it is 0."""
        denominator = sums["main"].denominator(work.terms["main"], "the main term") if work.divided_last else 0.0
        for parameter in self.parameters:
            if parameter.grad is not None and denominator:
                parameter.grad /= denominator

    def _plain_norm(self, work: Update) -> float | None:
        """Gradient norm of the same terms without their weights, over all tokens; None where there are no weights."""
        if not any(term.weights for term in work.terms.values()):
            return None
        plain = Update({name: term.unweighted for name, term in work.terms.items()}, work.portions, work.moment)
        sums = self._accumulate(plain)
        if sums["main"].totals:
            self._divide(plain, sums)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return whole_value(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def _lr_factor(self, update: int, updates: int) -> float:
        """Share of the peak learning rate at `update`, counted from 0."""
        settings = self.config.optimizer
        if update < settings.warmup:
            return (update + 1) / (settings.warmup + 1)
        left = 1 - (update - settings.warmup) / max(updates - settings.warmup, 1)
        shapes = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
        return max(shapes[settings.schedule], 0.0)


def whole_value(value: Tensor) -> float:
    """A number that may still have to be added up over the ranks that hold its parts; all of them call this."""
    return float(value.full_tensor() if hasattr(value, "full_tensor") else value)  # type: ignore[operator]


def _metrics(work: Update, sums: dict[str, Sums]) -> dict[str, float]:
    """The main term's under their own names, another's behind its name; `loss_total` is what goes backward."""
    metrics = sums["main"].metrics(work.terms["main"], "the main term")
    if len(work.terms) == 1:
        return metrics
    metrics["loss_total"] = metrics.get("loss", 0.0)
    for name, part in sums.items():
        if name != "main":
            coef = work.terms[name].coef_at(work.moment.step)
            found = part.metrics(work.terms[name], f"term {name}")
            metrics["loss_total"] += coef * found.get("loss", 0.0)
            metrics |= {f"{name}.{key}": value for key, value in (found | {"coef": coef}).items()}
    return metrics
