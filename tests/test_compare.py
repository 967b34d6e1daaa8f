"""From samples.jsonl to a verdict: what is read, paired, refused and said."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from driftgate import cli
from driftgate.errors import InputError
from driftgate.evaluate.passk import pass_at_k
from driftgate.study.command import read_arms, short_names
from driftgate.study.compare import Comparison, arm_scores, compare_arms, with_holm
from driftgate.study.scores import ScoreTable, read_scores, values_of
from driftgate.study.verdict import points, verdict


def write(folder, correct, shuffle=None):
    """samples.jsonl of benchmark -> bool [problems, samples]."""
    rows = [
        {"benchmark": name, "problem": f"p{p}", "sample": n, "text": "...", "correct": bool(value)}
        for name, part in correct.items()
        for (p, n), value in np.ndenumerate(part)
    ]
    if shuffle is not None:
        rows = [rows[i] for i in shuffle.permutation(len(rows))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def answers(rng, level, seeds=3, problems=20, samples=8, benchmarks=("a", "b")):
    """benchmark -> bool [seeds, problems, samples]."""
    return {name: rng.random((seeds, problems, samples)) < level for name in benchmarks}


def scores(correct, name="arm"):
    ids = {b: tuple(f"p{i:03}" for i in range(part.shape[1])) for b, part in correct.items()}
    return ScoreTable(name, ids, correct)


@pytest.fixture
def arms():
    rng = np.random.default_rng(0)
    return {name: scores(answers(rng, p), name) for name, p in (("none", 0.4), ("gate", 0.8), ("same", 0.4))}


def test_what_is_written_is_read_whatever_its_order(tmp_path):
    rng = np.random.default_rng(1)
    correct = answers(rng, 0.5, seeds=2, problems=9)
    folders = [write(tmp_path / f"s{s}", {b: part[s] for b, part in correct.items()}, shuffle=rng) for s in range(2)]
    read = read_scores(folders)
    assert read.seeds == 2
    assert all((read.correct[name] == part).all() for name, part in correct.items())
    assert read.problems["a"] == tuple(f"p{i}" for i in range(9))


def test_a_run_folder_stands_for_its_evaluation(tmp_path):
    write(tmp_path / "run" / "eval", {"a": np.eye(4, dtype=bool)})
    assert read_scores([tmp_path / "run"]).correct["a"].shape == (1, 4, 4)


def test_evaluations_made_otherwise_or_not_ended_are_refused(tmp_path):
    for name, temperature in (("one", 1.0), ("other", 0.2)):
        folder = write(tmp_path / name, {"a": np.eye(4, dtype=bool)})
        asked = {"settings": {"temperature": temperature}, "benchmarks": {"a": {"problems": 4, "sha256": "0"}}}
        (folder / "eval.json").write_text(json.dumps(asked))
        with pytest.raises(InputError, match=r"the evaluation has not ended"):
            read_scores([folder])
        (folder / "result.json").write_text("{}")
    with pytest.raises(InputError, match=r"other: temperature = 0.2, but 1.0 in .*one; evaluate both in the same way"):
        read_scores([tmp_path / "one", tmp_path / "other"])
    arms = {name: read_scores([tmp_path / name]) for name in ("one", "other")}
    with pytest.raises(InputError, match=r"temperature"):
        compare_arms(arms, "one", ["pass@1"])


def test_a_value_is_pass_at_k_of_one_seeds_samples(arms):
    values = values_of(arms["gate"], "pass@4")["b"]
    for (s, p), value in np.ndenumerate(values):
        assert value == pass_at_k(int(arms["gate"].correct["b"][s, p].sum()), 8, 4)
    assert (values_of(arms["gate"], "avg@n")["a"] == values_of(arms["gate"], "pass@1")["a"]).all()
    assert (values_of(arms["gate"], "avg@8")["a"] == values_of(arms["gate"], "pass@1")["a"]).all()


def test_a_clear_difference_is_found_and_none_is_not(arms):
    gate, same = compare_arms(arms, "none", ["pass@1"])
    assert (gate.arm, same.arm) == ("gate", "same")
    assert 0.3 < gate.low < gate.difference < gate.high < 0.55
    assert gate.p is not None
    assert gate.p < 0.01
    assert gate.p_holm == pytest.approx(2 * gate.p)
    assert same.low < 0 < same.high
    assert (gate.p_permutation, gate.least_p_permutation) == (0.25, 0.25)
    assert gate.per_seed == pytest.approx(
        np.mean([arms["gate"].correct[b].mean((1, 2)) - arms["none"].correct[b].mean((1, 2)) for b in "ab"], axis=0)
    )
    assert verdict(gate, "better")[0] == "supported"
    assert verdict(same, "better")[0] in ("undetermined", "equivalent")


def test_swapping_arm_and_base_turns_the_sign(arms):
    pair = {name: arms[name] for name in ("none", "gate")}
    there, back = compare_arms(pair, "none", ["pass@1"])[0], compare_arms(pair, "gate", ["pass@1"])[0]
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert back.p == pytest.approx(there.p)
    assert verdict(back, "better")[0] == "refuted"


def test_the_same_call_gives_the_same_answer(arms):
    assert compare_arms(arms, "none") == compare_arms(arms, "none")


def test_one_seed_gives_no_verdict(arms):
    single = {name: replace(part, correct={b: c[:1] for b, c in part.correct.items()}) for name, part in arms.items()}
    gate = compare_arms(single, "none", ["pass@1"])[0]
    assert gate.low > 0.2  # over problems it is clear
    assert gate.p is gate.p_holm is gate.p_equivalence is gate.detectable is gate.p_permutation is None
    word, why = verdict(gate, "better")
    assert word == "undetermined"
    assert "says nothing of training again" in why


def test_equal_answers_prove_equality_only_where_there_are_problems_enough(arms):
    pair = {"none": arms["none"], "copy": arms["none"]}
    same = compare_arms(pair, "none", ["pass@1"])[0]
    assert same.difference == 0
    assert same.low < 0 < same.high
    assert verdict(same, "equal")[0] == "undetermined"
    wide = compare_arms(pair, "none", ["pass@1"], margin=0.2)[0]
    assert wide.high < 0.2
    word, why = verdict(wide, "equal")
    assert word == "supported"
    assert "on every problem of all 3 seeds both score the same" in why
    assert verdict(wide, "better")[0] == "equivalent"


def test_holm_counts_all_comparisons_of_a_measure_whatever_their_base():
    rows = [
        ("a", "none", "pass@1", 0.01),
        ("b", "other", "pass@1", 0.04),
        ("c", "none", "pass@1", None),
        ("a", "none", "pass@8", 0.03),
    ]
    given = [Comparison(arm, against, measure, 0.0, -0.1, 0.1, 0.02, [0.0], p=p) for arm, against, measure, p in rows]
    assert [c.p_holm for c in with_holm(given)] == [pytest.approx(0.02), pytest.approx(0.04), None, pytest.approx(0.03)]


def test_equivalence_is_adjusted_over_a_measure_as_difference_is():
    rows = [("a", "pass@1", 0.01), ("b", "pass@1", 0.02), ("c", "pass@1", None), ("a", "pass@8", 0.03)]
    given = [Comparison(arm, "none", m, 0.0, -0.1, 0.1, 0.02, [0.0], p=1.0, p_equivalence=p) for arm, m, p in rows]
    assert [c.p_equivalence_holm for c in with_holm(given)] == pytest.approx([0.02, 0.02, None, 0.03])
    assert [c.p_equivalence_holm for c in with_holm(given, 5)] == pytest.approx([0.05, 0.08, None, 0.15])


def test_what_is_equivalent_only_before_holm_is_undetermined_and_says_so():
    alone = compared(0.0, 0.015, 0.9, 0.04)
    assert verdict(alone, "better")[0] == "equivalent"
    word, why = verdict(replace(alone, p_equivalence_holm=0.32), "better")
    assert word == "undetermined"
    assert "the latter only before Holm's correction (90 % interval [-1.2, +1.2], Holm p of equivalence 0.32)" in why
    assert verdict(replace(alone, p_equivalence_holm=0.32), "equal")[0] == "undetermined"


def compared(difference, half, p, p_equivalence):
    return Comparison(
        "gate", "none", "pass@1", difference, difference - half, difference + half, 0.02, [difference] * 3,
        p=p, p_holm=p, p_equivalence=p_equivalence, p_equivalence_holm=p_equivalence, detectable=0.05,
        low_90=difference - 0.8 * half, high_90=difference + 0.8 * half,
    )  # fmt: skip


CASES = [
    (0.05, 0.02, 0.01, 0.9, "supported", "refuted"),
    (-0.05, 0.02, 0.01, 0.9, "refuted", "refuted"),
    (0.03, 0.02, 0.01, 0.8, "supported", "undetermined"),
    (0.01, 0.005, 0.01, 0.01, "supported", "supported"),
    (0.00, 0.01, 0.90, 0.01, "equivalent", "supported"),
    (0.03, 0.09, 0.50, 0.60, "undetermined", "undetermined"),
]


@pytest.mark.parametrize(("difference", "half", "p", "p_equivalence", "better", "equal"), CASES)
def test_the_verdict_follows_from_test_and_margin(difference, half, p, p_equivalence, better, equal):
    c = compared(difference, half, p, p_equivalence)
    assert verdict(c, "better")[0] == better
    assert verdict(c, "equal")[0] == equal


def test_a_difference_inside_the_margin_is_called_both():
    c = compared(0.01, 0.005, 0.01, 0.01)
    why = verdict(c, "better")[1]
    assert "a difference" in why
    assert "within 2.0 points" in why
    assert "90 % interval [+0.6, +1.4]" in why


def test_an_open_verdict_says_what_could_have_been_seen():
    c = compared(0.03, 0.09, 0.5, 0.6)
    assert "would have to be about 5.0 points" in verdict(c, "better")[1]


def test_a_figure_reads_alike_however_it_was_summed_up():
    assert points(0.0175) == points(0.0175 - 1e-12) == points(0.0175 + 1e-12) == "+1.8"
    assert points(-1e-9) == "+0.0"


def test_scores_of_an_arm_stay_within_0_and_1_and_have_width():
    perfect = scores({"a": np.ones((3, 30, 8), dtype=bool), "b": np.zeros((3, 30, 8), dtype=bool)})
    estimates = arm_scores(perfect, "pass@1")
    assert estimates["a"].mean == estimates["a"].high == 1
    assert 0.9 < estimates["a"].low < 1
    assert estimates["b"].low == 0 < estimates["b"].high
    assert estimates["mean"].low < 0.5 < estimates["mean"].high


def test_scores_of_an_arm_widen_with_the_seeds_spread():
    rng = np.random.default_rng(3)
    steady = scores({"a": rng.random((3, 40, 8)) < 0.5})
    shifting = scores({"a": rng.random((3, 40, 8)) < np.array([0.2, 0.5, 0.8])[:, None, None]})
    narrow, wide = (arm_scores(part, "pass@1")["mean"] for part in (steady, shifting))
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


REFUSED = {
    "measure": (lambda a: compare_arms(a, "none", ["best@3"]), "--measure best@3: give pass@k"),
    "k": (lambda a: compare_arms(a, "none", ["pass@9"]), "8 samples a problem; give k of at most 8"),
    "pass@0": (lambda a: compare_arms(a, "none", ["pass@0"]), "--measure pass@0"),
    "avg": (lambda a: compare_arms(a, "none", ["avg@16"]), "--measure avg@16"),
    "twice": (lambda a: compare_arms(a, "none", ["pass@1", "pass@1"]), "none twice"),
    "margin": (lambda a: compare_arms(a, "none", margin=2.0), "--margin 2.0: give a difference as a fraction"),
    "base": (lambda a: compare_arms(a, "nobody"), "against=nobody"),
    "alone": (lambda a: compare_arms({"none": a["none"]}, "none"), "at least one arm beside it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused(case, arms):
    call, said = REFUSED[case]
    with pytest.raises(InputError, match=said):
        call(arms)


def changed(arms, **parts):
    return {"none": arms["none"], "gate": replace(arms["gate"], **parts)}


def test_arms_that_do_not_match_are_refused(arms):
    gate = arms["gate"]
    fewer_seeds = changed(arms, correct={b: c[:2] for b, c in gate.correct.items()})
    fewer_samples = changed(arms, correct={b: c[..., :4] for b, c in gate.correct.items()})
    others = changed(arms, problems=gate.problems | {"a": ("x", *gate.problems["a"][1:])})
    turned = changed(arms, problems=gate.problems | {"a": gate.problems["a"][::-1]})
    one = changed(arms, problems={"a": gate.problems["a"]}, correct={"a": gate.correct["a"]})
    for bad, said in (
        (fewer_seeds, "gate: 2 training seeds, 3 in none"),
        (fewer_samples, "gate: 4 samples a problem of a, 8 in none"),
        (others, "gate: 2 problems of a are not in both"),
        (turned, "another order"),
        (one, r"benchmarks differ from none \(b\)"),
    ):
        with pytest.raises(InputError, match=said):
            compare_arms(bad, "none")


BROKEN = {
    "empty": (lambda rows: [], "is empty"),
    "half a line": (lambda rows: [*rows[:-1], rows[-1][:20]], "line 16: not a graded sample"),
    "no verdict": (lambda rows: [rows[0].replace('"correct"', '"wrong"'), *rows[1:]], "line 1: not a graded sample"),
    "not graded": (lambda rows: [rows[0].replace("true", "null"), *rows[1:]], "line 1: not graded"),
    "twice": (lambda rows: [*rows, rows[-1]], "line 17: not graded, or a sample that was there before"),
    "unfinished": (lambda rows: rows[:-1], "problem p3 has 3 of 4 samples"),
    "one problem": (lambda rows: rows[:4], "one problem alone"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named(case, tmp_path):
    damage, said = BROKEN[case]
    folder = write(tmp_path / "arm", {"a": np.ones((4, 4), dtype=bool)})
    file = folder / "samples.jsonl"
    file.write_text("\n".join(damage(file.read_text().splitlines())))
    with pytest.raises(InputError, match=said) as error:
        read_scores([folder])
    assert str(folder) in str(error.value)


def test_folders_of_an_arm_must_match(tmp_path):
    first = write(tmp_path / "s0", {"a": np.ones((4, 4), dtype=bool)})
    second = write(tmp_path / "s1", {"a": np.ones((5, 4), dtype=bool)})
    with pytest.raises(InputError, match="s1: 1 problems of a are not in both"):
        read_scores([first, second])
    with pytest.raises(InputError, match="given twice"):
        read_scores([first, first])
    with pytest.raises(InputError, match="nor eval/samples"):
        read_scores([tmp_path / "nowhere"])


@pytest.fixture
def study(tmp_path):
    """Folders of two arms, three seeds each, with {seed} in their paths."""
    rng = np.random.default_rng(2)
    for arm, level in (("none", 0.4), ("gate", 0.7)):
        correct = answers(rng, level)
        for seed in range(3):
            write(tmp_path / arm / f"seed-{seed}" / "eval", {b: part[seed] for b, part in correct.items()})
    return [str(tmp_path / arm / "seed-{seed}") for arm in ("none", "gate")]


SEEDS_REFUSED = {
    "no number": ("0,one", None, "--seeds 0,one"),
    "twice": ("0,0", None, "--seeds 0,0"),
    "missing": (None, None, r"write \{seed\} in every folder"),
    "same arm": ("0,1", 0, "an arm is given twice"),
}


@pytest.mark.parametrize("case", SEEDS_REFUSED)
def test_seeds_that_cannot_be_are_refused(case, study):
    seeds, repeated, said = SEEDS_REFUSED[case]
    with pytest.raises(InputError, match=said):
        read_arms(study if repeated is None else [study[repeated]] * 2, seeds)


def test_an_arm_goes_by_what_its_folder_does_not_share():
    assert short_names([Path("r/none/seed-{seed}"), Path("r/b/seed-{seed}")]) == ["none", "b"]
    assert short_names([Path("r/a/eval"), Path("r/b")]) == ["a/eval", "b"]
    assert short_names([Path("x"), Path("x/y")]) == ["x", "x/y"]


def test_the_command_prints_and_writes_what_the_library_says(study, tmp_path, monkeypatch):
    console = Console(record=True, width=400)
    monkeypatch.setattr(cli, "console", console)
    out = tmp_path / "compared.json"
    asked = ["compare", *study, "--seeds", "0,1,2", "--measure", "avg@n", "--measure", "pass@8", "--out", str(out)]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 0, done.output
    written, text = json.loads(out.read_text()), console.export_text()
    expected = compare_arms(read_arms(study, "0,1,2"), "none", ["avg@n", "pass@8"])
    kept = [{k: v for k, v in row.items() if k not in ("verdict", "why")} for row in written["comparisons"]]
    assert kept == [asdict(c) for c in expected]
    assert written["folders"] == dict(zip(("none", "gate"), study))
    assert "the same as pass@1" in text
    assert "gate better than none in avg@n: supported." in text
    assert written["scores"]["gate"]["avg@n"]["mean"]["mean"] == pytest.approx(0.7, abs=0.05)
    assert "0.25 (0.25)" in text  # the permutation test's p is never shown without its least
