"""Student and teacher with unlike vocabularies: trained on what they share, or refused."""

import io
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer

from driftgate.data.problems import Problem
from driftgate.data.prompts import Prompt
from driftgate.errors import InputError
from driftgate.models.vocabularies import SHOWN, SharedVocabulary, shared_vocabulary
from driftgate.recipe import check_config
from driftgate.train.checks import check_engines, check_shared
from driftgate.train.command import run
from driftgate.train.rollouts import Engines


def tokenizer(plain, added=()):
    """plain, added: tokens in the order of their ids."""
    ids = {token: number for number, token in enumerate((*plain, *added))}
    return SimpleNamespace(get_vocab=lambda: ids, get_added_vocab=lambda: {t: ids[t] for t in added})


LETTERS = tuple("abcdefgh")


def test_the_same_tokens_need_no_cut():
    assert shared_vocabulary(tokenizer(LETTERS, ["<x>"]), {"teacher": tokenizer(LETTERS, ["<x>"])}) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "size", "left_out"),
    [
        ((), ("<x>",), 8, ("<x>",)),
        (("<x>", "<y>"), ("<x>",), 9, ("<y>",)),
        (("<x>", "<y>", "<z>"), ("<x>", "<u>", "<z>"), 9, ("<u>", "<y>", "<z>")),
    ],
)
def test_added_tokens_that_differ_are_left_out(ours, theirs, size, left_out):
    found = shared_vocabulary(tokenizer(LETTERS, ours), {"teacher": tokenizer(LETTERS, theirs)})
    assert (found.size, found.left_out) == (size, left_out)


def test_several_teachers_share_what_all_of_them_know():
    teachers = {"teachers.a": tokenizer(LETTERS, ["<x>"]), "teachers.b": tokenizer(LETTERS, ["<x>", "<y>", "<u>"])}
    found = shared_vocabulary(tokenizer(LETTERS, ["<x>", "<y>"]), teachers)
    assert (found.size, found.left_out) == (9, ("<u>", "<y>"))


@pytest.mark.parametrize("theirs", [tokenizer("abcdefhg"), tokenizer("abcdefg"), tokenizer("xabcdefgh")])
def test_different_tokenizers_are_refused(theirs):
    with pytest.raises(InputError, match=r"teacher.path: its vocabulary .* tokens differ by more than added tokens"):
        shared_vocabulary(tokenizer(LETTERS), {"teacher": theirs})


def test_the_first_ten_tokens_that_differ_are_named():
    ours = [f"a{n:02}" for n in range(30)]
    with pytest.raises(InputError) as error:
        shared_vocabulary(tokenizer(["=", *ours]), {"teacher": tokenizer(["=", *reversed(ours)])})
    named = [token for token in ours if f"{token!r} (" in str(error.value)]
    assert len(named) == SHOWN
    assert "'a00' (1, 30)" in str(error.value)


def with_added_token(folder, to):
    """The model with one more token, and rows of its embedding beyond it."""
    shutil.copytree(folder, to)
    larger, model = AutoTokenizer.from_pretrained(to), AutoModelForCausalLM.from_pretrained(to)
    larger.add_tokens([AddedToken("<snow>", special=True)])
    torch.manual_seed(0)
    model.resize_token_embeddings(len(larger) + 7, mean_resizing=False)
    model.save_pretrained(to)
    larger.save_pretrained(to)
    return to


def metrics(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


@pytest.mark.parametrize("objective", ["sampled_token", "lsm", "divergence"])
def test_tokens_of_one_side_alone_change_no_bit(objective, settings, tmp_path):
    """The loss is that of models that never had the tokens: the others' rows get no mass, on either side."""
    small = {"steps": 2, "passes": 2, "objective": {"kind": objective}, "threads": 1}
    plain = check_config(settings | small)
    run(plain, tmp_path / "plain", Console(quiet=True))
    for side in ("student", "teacher"):
        path = str(with_added_token(settings[side]["path"], tmp_path / f"{side}_{objective}"))
        changed = check_config(settings | small | {side: settings[side] | {"path": path}})
        console = Console(record=True, file=io.StringIO(), width=200)
        run(changed, tmp_path / f"run_{side}", console)
        assert "left out on both sides: '<snow>'" in console.export_text()
        assert metrics(tmp_path / f"run_{side}") == metrics(tmp_path / "plain")


def test_a_prompt_with_a_token_that_the_teacher_lacks_is_refused(settings, tmp_path):
    path = str(with_added_token(settings["student"]["path"], tmp_path / "student"))
    changed = settings | {"student": {"path": path}, "prompts": settings["prompts"] | {"template": "<snow>{problem}"}}
    with pytest.raises(InputError, match=r"student.path: the prompt of problem .* has the id \d+, which is not among"):
        run(check_config(changed), tmp_path / "run", Console(quiet=True))


def test_an_answer_must_be_able_to_end(settings, tmp_path):
    path = str(with_added_token(settings["student"]["path"], tmp_path / "student"))
    ended = len(AutoTokenizer.from_pretrained(path)) - 1
    changed = settings | {"student": {"path": path}, "rollout": settings["rollout"] | {"stop_ids": [ended]}}
    with pytest.raises(InputError, match=r"rollout.stop_ids = \[\d+\]: student and teacher share only the ids below"):
        run(check_config(changed), tmp_path / "run", Console(quiet=True))


@pytest.mark.parametrize("setting", ["rollout.engine", "teacher"])
def test_servers_are_refused_where_tokens_are_left_out(setting, settings):
    urls = {"kind": "server", "urls": ["http://127.0.0.1:1"]}
    engine = {"kind": "vllm", "urls": ["http://127.0.0.1:1"]}
    teacher = {"teacher": settings["teacher"] | urls, "diagnostics": {"every": 0}}
    rollout = {"rollout": settings["rollout"] | {"engine": engine, "temperature": 1.0, "top_p": 1.0}}
    config = check_config(settings | (teacher if setting == "teacher" else rollout))
    with pytest.raises(InputError, match=f"{setting} on servers, where student and teacher share 8 token ids"):
        check_engines(config, SharedVocabulary(8, ("<x>",)))


def test_a_solution_with_a_token_that_the_teacher_lacks_is_refused(settings, tmp_path):
    path = str(with_added_token(settings["student"]["path"], tmp_path / "student"))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"problem": "47 a+38 ?", "solution": "<snow>47a+38=75"}) + "\n")
    learned = {
        "rollout": settings["rollout"] | {"on_policy": 0},
        "objective": {"kind": "nll"},
        "gate": {"spans": "none"},
    }
    changed = settings | learned | {"student": {"path": path}, "prompts": {"path": str(prompts), "per_step": 1}}
    with pytest.raises(InputError, match=r"student.path: the solution of problem '0' has the id \d+, which"):
        run(check_config(changed), tmp_path / "run", Console(quiet=True))


def test_the_teacher_of_a_prompt_is_named():
    prompts = [Prompt(Problem("7", "?"), (1,), (1, 9), teacher=1)]
    config = SimpleNamespace(teacher_roles={"teachers.first": None, "teachers.second": None})
    engines = Engines(None, None, (2,), lambda text: (1,))
    with pytest.raises(InputError, match=r"teachers.second.path: the prompt of problem '7' has the id 9"):
        check_shared(config, SharedVocabulary(8, ("<x>",)), prompts, engines)
