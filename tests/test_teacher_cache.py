"""Teacher scores on the disk: what is read is what scoring would give; files that are broken, shared or refused."""

import json
from dataclasses import replace
from threading import Thread

import pytest
import torch
from conftest import collected
from rich.console import Console
from safetensors.torch import load_file

from driftgate.data.experience import Experience
from driftgate.data.problems import Problem
from driftgate.data.prompts import Prompt
from driftgate.data.response import Response
from driftgate.errors import InputError, RunError
from driftgate.method.scores import Needs, TokenScores
from driftgate.recipe import check_config
from driftgate.scorers import cache
from driftgate.scorers.cache import CachedScorer, key_of
from driftgate.train.command import run
from driftgate.train.folder import final_model
from driftgate.world import Alone

QUIET = Console(quiet=True)
UNION = {"objective": {"kind": "divergence", "divergence": "jsd", "support": "union", "k": 4}}
SAMPLED = {"objective": {"kind": "sampled_token"}}
CASES = {
    "lsm": {},
    "union": UNION,
    "entropy": {**SAMPLED, "weights": {"sure": {"signal": "teacher_entropy", "map": "exp"}}},
    "diagnosed": {"diagnostics": {"every": 1}},
}


@pytest.fixture
def cached(settings, tmp_path):
    """Settings whose teacher's scores are kept in the folder `scores`."""
    rollout = settings["rollout"] | {"allow_truncated": True}
    teacher = settings["teacher"] | {"cache": str(tmp_path / "scores")}
    return settings | {"steps": 2, "rollout": rollout, "teacher": teacher, "device": "cpu"}


def files(tmp_path):
    return sorted((tmp_path / "scores").iterdir())


def outcome(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    dropped = ("seconds", "time", "teacher_cache_hits")
    kept = [{n: v for n, v in line.items() if not n.startswith(dropped)} for line in lines]
    hits = [line["teacher_cache_hits"] for line in lines if "teacher_cache_hits" in line]
    return kept, hits, load_file(next(final_model(out).glob("*.safetensors")))


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_is_what_scoring_gives(cached, tmp_path, case):
    config = check_config(cached | CASES[case])
    run(check_config(cached | CASES[case] | {"teacher": cached["teacher"] | {"cache": None}}), tmp_path / "0", QUIET)
    run(config, tmp_path / "1", QUIET)
    assert len(files(tmp_path)) == 2  # one a rollout batch
    run(config, tmp_path / "2", QUIET)
    (plain, no_hits, weights), *others = (outcome(tmp_path / str(n)) for n in range(3))
    assert not no_hits
    for (metrics, hits, ours), expected in zip(others, ([0, 0], [12, 12])):
        assert hits == expected
        assert metrics == plain
        assert all(torch.equal(weights[name], ours[name]) for name in weights)
    assert len(files(tmp_path)) == 2


def test_several_teachers_keep_a_file_each(cached, tmp_path):
    rows = [{"id": f"p{i}", "problem": f"{i}+1=", "teacher": "ab"[i % 2]} for i in range(6)]
    (tmp_path / "routed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = {"path": str(tmp_path / "routed.jsonl"), "per_step": 6}
    teachers = {"a": cached["teacher"], "b": {"path": "student", "cache": cached["teacher"]["cache"]}}
    config = check_config(cached | {"prompts": prompts, "teacher": None, "teachers": teachers, "steps": 1})
    for number in range(2):
        run(config, tmp_path / str(number), QUIET)
        assert len(files(tmp_path)) == 2
    (plain, none, weights), (again, hits, others) = (outcome(tmp_path / str(n)) for n in range(2))
    assert (plain, none, hits) == (again, [0], [18])
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def damaged(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[-1] ^= 1
    path.write_bytes(b"" if how == "empty" else bytes(content))


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_broken_file_is_said_and_scored_anew(cached, tmp_path, capsys, how):
    config = check_config(cached | {"steps": 1})
    _, responses = collected(config, tmp_path / "1")
    [path] = files(tmp_path)
    whole = path.read_bytes()
    damaged(path, how)
    _, again = collected(config, tmp_path / "2")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"driftgate: {path}: is broken (")
    assert line.endswith("scored anew")
    assert path.read_bytes() == whole
    assert torch.equal(responses["student"].scores.teacher.top_logp, again["student"].scores.teacher.top_logp)


def batch_of(responses=((3, 4, 5), (6, 7)), prompt=(1, 2), teacher=(1, 2), drop=()):
    shown = Prompt(Problem("a", "x"), prompt, teacher)
    written = [[Response(ids, (0.0,) * len(ids), True) for ids in responses]]
    batch = Experience.of([shown], written, drop)
    top = torch.arange(2 * len(batch.ids)).view(-1, 2).int()
    return batch.with_scores(behaviour=TokenScores(top_ids=top, top_logp=top.float()))


def test_the_key_holds_all_that_scores_depend_on():
    plain = batch_of()
    other_ids = plain.with_scores(behaviour=TokenScores(top_ids=plain.scores.behaviour.top_ids + 1))
    logp, at_ids, here = Needs(logp=True), Needs(at_ids=True), {"model": "m", "temperature": 1.0}
    both = [[0, 1]]
    keys = {
        "plain": key_of(plain, logp, both, here),
        "response": key_of(batch_of(((3, 4, 5), (6, 8))), logp, both, here),
        "border": key_of(batch_of(((3, 4), (5, 6, 7))), logp, both, here),
        "prompt": key_of(batch_of(teacher=(1, 3)), logp, both, here),
        "dropped": key_of(batch_of(drop=(4,)), logp, both, here),
        "needs": key_of(plain, Needs(logp=True, top=2), both, here),
        "layout": key_of(plain, logp, [[0], [1]], here),
        "a part": key_of(plain, logp, [[0]], here),
        "temperature": key_of(plain, logp, both, here | {"temperature": 0.7}),
        "model": key_of(plain, logp, both, here | {"model": "n"}),
        "at ids": key_of(plain, at_ids, both, here),
        "at other ids": key_of(other_ids, at_ids, both, here),
    }
    assert len(set(keys.values())) == len(keys)
    same = [
        key_of(batch_of(prompt=(9, 9)), logp, both, here),  # the student's prompt is nothing to the teacher
        key_of(other_ids, logp, both, here),
        key_of(replace(plain, version=7), logp, both, dict(reversed(here.items()))),
    ]
    assert set(same) == {keys["plain"]}


class Counting:
    """A scorer that counts how often it was asked."""

    can = Needs(True, True, 9, True, True)
    asked = 0

    def score(self, batch, needs, groups=None):
        self.asked += 1
        logp = torch.zeros(len(batch.ids))
        tokens = batch.tokens_of([i for group in groups for i in group])
        logp[tokens] = batch.ids[tokens].float()
        return TokenScores(logp=logp)


def scorer_in(folder, world=None):
    return CachedScorer(Counting(), folder, {"model": "m"}, world or Alone(), "teacher.cache")


def test_a_part_of_the_sequences_is_read_to_its_places(tmp_path):
    batch, made = batch_of(), scorer_in(tmp_path)
    first, again = (made.score(batch, Needs(logp=True), [[1]]).logp.tolist() for _ in range(2))
    assert first == again == [0, 0, 0, 6, 7]
    assert (made.scorer.asked, made.take_hits(), made.take_hits()) == (1, 1, 0)
    assert made.score(batch_of(drop=(6, 7)), Needs(logp=True), [[1]]).logp.tolist() == [0, 0, 0]  # nothing to keep


class OtherRank(Alone):
    """Rank 1, beside a rank that has read nothing."""

    rank, size = 1, 2

    def share(self, value):
        return [None, value]


def test_ranks_that_do_not_read_the_same_all_score(tmp_path):
    scorer_in(tmp_path).score(batch_of(), Needs(logp=True))
    made = scorer_in(tmp_path, OtherRank())
    made.score(batch_of(), Needs(logp=True))
    assert (made.scorer.asked, made.hits) == (1, 0)


def test_many_writers_of_one_file_leave_it_whole(tmp_path):
    made = [scorer_in(tmp_path) for _ in range(8)]
    threads = [Thread(target=each.score, args=(batch_of(), Needs(logp=True))) for each in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.iterdir())) == 1
    last = scorer_in(tmp_path)
    assert last.score(batch_of(), Needs(logp=True)).logp.tolist() == [3, 4, 5, 6, 7]
    assert last.scorer.asked == 0


def test_a_disk_that_refuses_is_said(tmp_path, monkeypatch):
    def refuse(*args, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", refuse)
    with pytest.raises(RunError, match=r"teacher.cache = .*cannot be written to .*No space left.*; free disk space"):
        scorer_in(tmp_path).score(batch_of(), Needs(logp=True))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"teacher.cache = .*file/in: is no folder and cannot be made"):
        scorer_in(tmp_path / "file" / "in")


def test_a_resumed_run_may_keep_its_scores_elsewhere(cached, tmp_path):
    run(check_config(cached | {"steps": 1}), tmp_path / "run", QUIET)
    run(check_config(cached | {"teacher": cached["teacher"] | {"cache": None}}), tmp_path / "run", QUIET)
    with pytest.raises(InputError, match="holds a run with other settings: teacher"):
        run(check_config(cached | {"teacher": cached["teacher"] | {"path": "student"}}), tmp_path / "run", QUIET)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": {"path": "student", "follow": {"every": 1}, "cache": "x"}}, r"teacher.cache with teacher.follow"),
        ({"objective": {"kind": "divergence"}}, r"teacher.cache with objective.support = vocabulary"),
    ],
)
def test_what_is_not_kept_is_refused(cached, changes, said):
    with pytest.raises(InputError, match=said):
        check_config(cached | changes)
