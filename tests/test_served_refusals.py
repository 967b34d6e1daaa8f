"""What servers of a teacher cannot, or get wrong: refused before any compute, or said in one line."""

import math
from contextlib import ExitStack

import pytest
from conftest import make_model
from fake_vllm import FakeVLLM
from test_served_teacher import at

from driftgate.errors import InputError, RunError
from driftgate.recipe import check_config
from driftgate.train.build import build_run


class Limited(FakeVLLM):
    """Gives at most five log-probabilities."""

    def on_inference_v1_generate(self, body):
        asked = body["sampling_params"].get("prompt_logprobs", 0)
        if asked > 5:
            text = f"Requested prompt logprobs of {asked}, which is greater than max allowed: 5"
            return 400, {"error": {"message": text, "code": 400}}
        return super().on_inference_v1_generate(body)


class Spoilt(FakeVLLM):
    """Answers of the prompts of a run lack something, or hold what is no number; a probe's are good."""

    spoil = None

    def prompt_logprobs(self, prompt, params):
        rows = super().prompt_logprobs(prompt, params)
        if rows is None or self.spoil is None:
            return rows
        return rows[:1] + [self.spoil(dict(row)) for row in rows[1:]]


@pytest.fixture
def served(settings):
    """Settings whose teacher is on a server."""
    with FakeVLLM(settings["teacher"]["path"]) as fake:
        yield at(settings, fake.url)


RUBBISH = {
    "no own token": (lambda row: {"0": {"logprob": -1.0}}, "no log-probability of a prompt's own token"),
    "not a number": (lambda row: {k: {"logprob": math.nan} for k in row}, "that is no finite number"),
    "too few": (lambda row: dict(sorted(row.items())[-1:]), "."),
}


@pytest.mark.parametrize("case", RUBBISH)
def test_rubbish_from_a_server_ends_the_run_in_one_line(settings, pair, tmp_path, case):
    spoil, said = RUBBISH[case]
    with Spoilt(pair[1]) as fake:
        made = build_run(check_config(at(settings, fake.url)), tmp_path / "run")
        fake.spoil = spoil
        (tmp_path / "run").mkdir()
        with pytest.raises(RunError, match=rf"{fake.url}: .*{said}") as error:
            made.source.take(made.position)
        assert len(str(error.value).splitlines()) == 1


def refused(settings, out, said, *urls):
    with pytest.raises(InputError, match=said) as error:
        build_run(check_config(at(settings, *urls)), out)
    assert len(str(error.value).splitlines()) == 1


def test_servers_that_cannot_be_used_are_refused_before_any_compute(settings, pair, tmp_path):
    with ExitStack() as stack:

        def begun(kind=FakeVLLM, folder=pair[1], **how):
            return stack.enter_context(kind(folder, **how))

        refused(
            settings,
            tmp_path,
            r"teacher.urls: http://127.0.0.1:9: .*cannot be reached.*start vLLM",
            "http://127.0.0.1:9",
        )
        refused(settings, tmp_path, r"urls = 'ftp://x': is no address", "ftp://x")
        refused(settings, tmp_path, r"teacher.urls: .*is vLLM 0.9.1; driftgate speaks", begun(version="0.9.1").url)
        small = r"rollout.max_new_tokens = 40: .*exceed the teacher's context of 41"
        refused(settings, tmp_path, small, begun(context=42).url)
        limited = r"teacher.urls: .*greater than max allowed: 5; start it with --max-logprobs 6"
        refused(settings, tmp_path, limited, begun(Limited).url)
        larger = make_model(tmp_path / "larger", 3, vocab_size=99)
        refused(
            settings,
            tmp_path,
            r"teacher.urls: .* serves a model whose vocabulary is not the \d+ ids",
            begun(folder=larger).url,
        )
        other = make_model(tmp_path / "other", 4, hidden=48)
        refused(
            settings,
            tmp_path,
            r"teacher.urls: .* as .* does; give servers of one model",
            begun().url,
            begun(folder=other).url,
        )
        fake = begun()
        fake.fault, fake.fault_path = "hang", "/inference"
        with pytest.raises(InputError, match=r"teacher.urls: .*/generate has no answer after 0.2 s; start vLLM"):
            build_run(check_config(at(settings, fake.url, timeout=0.2)), tmp_path)
        for fault in ("rubbish", "fields"):
            fake = begun()
            fake.fault = fault
            refused(settings, tmp_path, rf"teacher.urls: {fake.url}: /version", fake.url)


ENTROPY = {"weights": {"sure": {"signal": "teacher_entropy", "map": "exp"}}}


def test_entropies_are_refused_before_any_compute(served, tmp_path):
    for changes in (ENTROPY, {"diagnostics": {"every": 1}}):
        with pytest.raises(InputError, match="teacher: cannot score entropy, which the loss or a metric needs"):
            build_run(check_config(served | changes), tmp_path)


SETTINGS = {
    "temperature": ({"rollout": {"temperature": 0.7}}, r"rollout.temperature = 0.7 with teacher.kind = server"),
    "vocabulary": ({"objective": {"kind": "divergence"}}, r"objective.support = vocabulary with teacher.kind = server"),
    "budget": ({"rollout": {"kl_budget": 0.1}}, r"rollout.kl_budget = 0.1 with teacher.kind = server"),
    "no urls": (
        {"teacher": {"path": "x", "kind": "server"}},
        r"kind = server with urls = \[\]: servers need addresses",
    ),
    "urls": ({"teacher": {"path": "x", "urls": ["http://a:1"]}}, r"kind = local with urls = .*: servers need"),
    "compute": (
        {"teacher": {"path": "x", "kind": "server", "urls": ["http://a:1"], "compute": "bfloat16"}},
        r"compute = bfloat16 with kind = server, which holds the model itself",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_a_server_cannot_serve_are_refused(served, case):
    changes, said = SETTINGS[case]
    with pytest.raises(InputError, match=said) as error:
        check_config(served | changes)
    assert len(str(error.value).splitlines()) == 1


def test_the_student_s_servers_are_not_the_teacher_s(served):
    engine = {"kind": "vllm", "urls": served["teacher"]["urls"]}
    with pytest.raises(InputError, match=r"teacher.urls: .* is among rollout.engine.urls too"):
        check_config(served | {"rollout": served["rollout"] | {"engine": engine}})
