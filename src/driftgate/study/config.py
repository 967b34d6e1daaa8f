"""Settings of a study: arms that differ in what is under test and in nothing else, each trained with every seed."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ..config import TrainConfig
from ..errors import InputError
from ..evaluate.exam import ExamSettings
from ..recipe import check_config, checked, load_values, merge, parse_yaml
from ..settings import Settings, differing, flat
from .runs import REFERENCE_FOLDER, REFERENCES
from .scores import samples_needed

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]
"""Of a folder."""
Tree = dict[str, Any]
"""Settings of a run as in a recipe: groups in groups."""


class Arm(Settings):
    """One way of training."""

    recipe: str
    """A shipped recipe, or a .yaml file."""
    what: str = ""
    """One line for the report."""
    settings: Tree = Field(default={})
    """Changes to the recipe, written as in a recipe."""
    against: str | None = None
    """The arm that it is compared with; null for the study's `base`, or for nothing if others are compared with it."""


class Claim(Settings):
    """A sentence that the study is to judge."""

    text: str
    """For the report."""
    arm: str
    """The arm that it is about; it is judged by its comparison with the arm that this one is compared with."""
    measure: str = "pass@1"
    """One of `measures`."""
    says: Literal["better", "equal"] = "better"
    """`better`: the arm scores higher. `equal`: the two differ by less than the margin."""


def _unique(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError("give each seed once, and at least one")
    return seeds


class Study(Settings):
    """Arms x seeds."""

    what: str = ""
    """What is asked, for the report."""
    family: str | None = None
    """As `driftgate train --family`: models, prompts and sizes of another family's recipes."""
    common: Tree = Field(default={})
    """Settings of all arms, over those of their recipes."""
    varies: tuple[str, ...]
    """The settings or groups in which arms may differ (`gate`, `weights`, `optimizer.lr`); all others are checked to
    be the same."""
    arms: dict[Name, Arm]
    base: str
    """The arm that others are compared with."""
    seeds: Annotated[tuple[int, ...], AfterValidator(_unique)]
    """Training seeds; each arm is trained with each."""
    exam: ExamSettings
    references: bool = True
    """Examine the untrained student and the teacher too."""
    measures: tuple[str, ...] = ("pass@1", "pass@8")
    """What arms are compared in."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Difference that would not matter, as a fraction of 1: the equivalence test's."""
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _known_measures(self) -> "Study":
        if not self.measures or len(set(self.measures)) < len(self.measures):
            raise ValueError(f"measures = {', '.join(self.measures)}: give at least one, and none twice")
        for measure in self.measures:
            try:
                samples_needed(measure, self.exam.samples, "the exam")
            except InputError as error:
                raise ValueError(str(error).removeprefix("--")) from None
        return self

    @model_validator(mode="after")
    def _names(self) -> "Study":
        for name in self.arms.keys() & {*REFERENCES, REFERENCE_FOLDER}:
            raise ValueError(f"arms.{name}: the name is taken by models that no arm trains; choose another")
        for where, name in self._named():
            if name not in self.arms:
                raise ValueError(f"{where} = {name}: there is no such arm; there are {', '.join(self.arms)}")
        for claim in self.claims:
            if claim.measure not in self.measures:
                raise ValueError(f"claim on {claim.arm}: {claim.measure} is not among measures; add it there")
            if claim.arm == self.against(claim.arm):
                raise ValueError(f"claim on {claim.arm}: it is what the others are compared with; name another arm")
        return self

    def _named(self) -> list[tuple[str, str]]:
        arms = [(f"arms.{name}.against", arm.against) for name, arm in self.arms.items()]
        claims = [("claims.arm", claim.arm) for claim in self.claims]
        return [(where, name) for where, name in [("base", self.base), *arms, *claims] if name is not None]

    def exam_of(self, config: TrainConfig) -> ExamSettings:
        """Of a model trained by `config`, which is shown problems as it was trained to see them."""
        return self.exam.as_trained(config.prompts.model_dump(), config.rollout.stop_ids)

    def against(self, arm: str) -> str:
        """The arm that `arm` is compared with; itself for one that only others are compared with."""
        bases = {self.base, *(each.against for each in self.arms.values())}
        return self.arms[arm].against or (arm if arm in bases else self.base)


def load_study(path: Path) -> Study:
    """Raises InputError for a file that is missing or wrong."""
    if not path.is_file():
        raise InputError(f"study {path}: there is no such file")
    return checked(Study, parse_yaml(path.read_text(encoding="utf-8"), f"study {path}"))


def arm_configs(study: Study) -> dict[str, TrainConfig]:
    """Every arm's configuration, with the first seed. Raises InputError for a wrong setting, naming the arm, and where
    arms differ in what is not under test."""
    configs = {}
    for name, arm in study.arms.items():
        values = load_values(arm.recipe, study.family)
        for change in (study.common, arm.settings, {"seed": study.seeds[0]}):
            values = merge(values, change)
        try:
            configs[name] = check_config(values)
        except InputError as error:
            raise InputError(f"arm {name}: {error}") from None
    for name, config in configs.items():
        _refuse_other_differences(study, name, settings_of(config), settings_of(configs[study.base]))
    return configs


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """Dotted setting -> value, as of `flat`."""
    return flat(config.model_dump(mode="json"))


def _refuse_other_differences(study: Study, arm: str, one: dict[str, Any], base: dict[str, Any]) -> None:
    for key in differing(one, base):
        if not any(key == group or key.startswith(f"{group}.") for group in study.varies):
            raise InputError(
                f"arm {arm}: {key} = {one.get(key)} but {base.get(key)} in {study.base}, which is not under test; "
                f"set it alike (in `common`), or add it to `varies`"
            )
