"""What is scored: a loss's needs follow from its terms."""

import pytest

from driftgate.method.scores import Needs
from driftgate.recipe import load_recipe
from driftgate.train.scoring import needs_of


def needs(*overrides, responses="student", diagnose=False, recipe="sandbox/lsm_none"):
    every = f"diagnostics.every={int(diagnose)}"
    return needs_of(load_recipe(recipe, ["diagnostics.k=5", every, *overrides]), responses, 0)


TEACHER_TOP = Needs(top=8)
LOGP = Needs(logp=True)
NEEDS = {
    "the drift is measured by default": ([], {"behaviour": LOGP, "teacher": TEACHER_TOP}),
    "LSM alone looks at the teacher": (["log_drift=false"], {"teacher": TEACHER_TOP}),
    "a gate": (["log_drift=false", "gate.spans=block"], {"behaviour": LOGP, "teacher": TEACHER_TOP}),
    "overlap": (["weights.x.signal=overlap"], {"behaviour": Needs(logp=True, top=5), "teacher": TEACHER_TOP}),
    "divergence": (
        ["weights.x.signal=divergence"],
        {"behaviour": Needs(logp=True, top=5), "teacher": Needs(top=8, at_ids=True)},
    ),
    "entropies": (
        ["weights.x.signal=sure_teacher_unsure_student"],
        {"behaviour": Needs(logp=True, entropy=True), "teacher": Needs(top=8, entropy=True)},
    ),
    "a condition": (
        ["weights.x.signal=one", "weights.x.where={signal: teacher_entropy, above: 0.8}"],
        {"behaviour": LOGP, "teacher": Needs(top=8, entropy=True)},
    ),
    "the sampled token": (
        ["objective={kind: sampled_token}"],
        {"behaviour": LOGP, "teacher": Needs(logp=True)},
    ),
    "candidates": (
        ["objective={kind: candidates, k: 3}"],
        {"behaviour": Needs(logp=True, top=3), "teacher": Needs(at_ids=True)},
    ),
    "the whole vocabulary": (
        ["objective={kind: divergence}"],
        {"behaviour": LOGP, "teacher": Needs(hidden=True)},
    ),
    "a union with the initial student": (
        ["log_drift=false", "objective={kind: divergence, support: union, k: 4, target: initial}"],
        {"behaviour": Needs(top=4), "initial": Needs(top=4, at_ids=True)},
    ),
    "an intersection": (
        ["log_drift=false", "objective={kind: divergence, support: intersection, k: 4}"],
        {"behaviour": Needs(top=4), "teacher": Needs(top=4)},
    ),
    "the greatest k of several": (
        ["terms.two.objective={kind: lsm, k: 11}", "weights.x.signal=teacher_margin"],
        {"behaviour": LOGP, "teacher": Needs(top=11)},
    ),
    "the greatest k, not the last": (
        ["objective={kind: candidates, k: 12}", "weights.x.signal=overlap", "terms.two.objective={kind: lsm, k: 3}"],
        {"behaviour": Needs(logp=True, top=12), "teacher": Needs(top=5, at_ids=True)},
    ),
    "the first term's k": (["terms.two.objective={kind: lsm, k: 3}"], {"behaviour": LOGP, "teacher": TEACHER_TOP}),
    "nothing of the terms on other responses": (
        ["terms.two={objective: {kind: divergence}, responses: teacher}"],
        {"behaviour": LOGP, "teacher": TEACHER_TOP},
    ),
}


@pytest.mark.parametrize("case", NEEDS)
def test_responses_are_scored_with_what_its_terms_read(case):
    overrides, expected = NEEDS[case]
    assert needs(*overrides) == expected


def test_diagnostics_need_entropy_and_overlap():
    assert needs("objective={kind: nll}", "log_drift=false") == {}
    diagnosed = needs("objective={kind: nll}", "log_drift=false", diagnose=True)
    assert diagnosed == {"behaviour": LOGP, "teacher": Needs(entropy=True, top=5)}


def test_a_term_whose_coefficient_is_zero_is_not_scored():
    term = "terms.two={objective: {kind: divergence}, coef: {start: 0.5, end: 0, steps: 4}}"
    config = load_recipe("sandbox/lsm_none", [term, "diagnostics.every=0"])
    assert [needs_of(config, "student", step)["teacher"].hidden for step in (0, 3, 4, 9)] == [
        True,
        True,
        False,
        False,
    ]


def test_other_responses_have_needs_of_their_own():
    nll = "terms.two={objective: {kind: nll}, responses: reference}"
    assert needs(nll, responses="reference", diagnose=True) == {}
    weighted = needs(nll, "terms.two.weights.x.signal=student_entropy", responses="reference")
    assert weighted == {"behaviour": Needs(entropy=True)}
    lsm = needs("terms.two={objective: {kind: lsm, k: 3}, responses: teacher}", responses="teacher")
    assert lsm == {"teacher": Needs(top=3)}
