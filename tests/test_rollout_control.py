"""What steers a rollout: the KL budget, teacher prefixes and reference solutions."""

import math

import pytest
import torch
from conftest import make_model
from scipy.stats import chisquare

from driftgate import keyed
from driftgate.config import ModelSettings
from driftgate.models.load import load_model
from driftgate.models.policy import Policy
from driftgate.rollout import blend as blending
from driftgate.rollout.blend import blend
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine
from driftgate.rollout.prefix import generate_with_prefix
from driftgate.rollout.reference import reference_response

EOS = 1
PROMPTS = [(7, 8, 9), (10, 11, 12, 13, 14, 15), (20,), (9, 9, 9, 9)]
PLAIN = Sampling(20, 0.9, 0.9, (EOS,))
GUIDED = Sampling(20, 0.9, 0.9, (EOS,), budget=0.3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(student, teacher), float64."""
    folder = tmp_path_factory.mktemp("m")
    made = make_model(folder / "student", 5, std=0.25), make_model(folder / "teacher", 6, hidden=48, std=0.25)
    settings = [ModelSettings(path=path, dtype="float64") for path in made]
    return [Policy(load_model(s, "student", torch.device("cpu"))) for s in settings]


def requests(samples=3, seed=0, teacher_prompts=None):
    shown = teacher_prompts or [None] * len(PROMPTS)
    keys = [tuple((seed, i, n) for n in range(samples)) for i in range(len(PROMPTS))]
    return [Request(*fields) for fields in zip(PROMPTS, keys, shown)]


def ids_of(groups):
    return [[response.ids for response in group] for group in groups]


def slow_mixture(log_p, log_q, b):
    """Plain loops: mu = p^(1-b) q^b / Z, and KL(mu || p)."""
    raw = [math.exp((1 - b) * p + b * q) for p, q in zip(log_p, log_q)]
    mu = [value / sum(raw) for value in raw]
    return mu, sum(m * (math.log(m) - p) for m, p in zip(mu, log_p) if m > 0)


def slow_blend(log_p, log_q, budget):
    low, high = 0.0, 1.0
    if slow_mixture(log_p, log_q, 1.0)[1] <= budget:
        low = 1.0
    for _ in range(60 if low < 1 else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if slow_mixture(log_p, log_q, middle)[1] <= budget else (low, middle)
    return slow_mixture(log_p, log_q, low)[0], low


def random_rows(rows=40, size=12, dtype=torch.float64):
    """Pairs of distributions from nearly equal to far apart."""
    draw = torch.Generator().manual_seed(0)
    log_p, shift = (torch.randn(rows, size, generator=draw, dtype=dtype) * 2 for _ in range(2))
    log_q = log_p + shift * torch.logspace(-3, 1, rows, dtype=dtype)[:, None]
    return log_p.log_softmax(-1), log_q.log_softmax(-1)


@pytest.mark.parametrize("budget", [1e-4, 0.05, 1.0])
def test_the_mixture_equals_its_slow_twin_and_spends_the_budget(budget):
    log_p, log_q = random_rows()
    log_mu, b = blend(log_p, log_q, budget)
    for row, (p, q) in enumerate(zip(log_p.tolist(), log_q.tolist())):
        mu, share_of_teacher = slow_blend(p, q, budget)
        assert b[row].item() == pytest.approx(share_of_teacher, abs=1e-9)
        torch.testing.assert_close(log_mu[row].exp(), torch.tensor(mu, dtype=torch.float64), rtol=0, atol=1e-9)
    spent = (log_mu.exp() * (log_mu - log_p)).sum(-1)
    assert (spent <= budget + 1e-12).all()
    assert ((b == 1) | (spent >= budget - 1e-6)).all()
    assert (b == 1).any()
    assert (b < 1).any()


def test_the_teachers_share_grows_with_the_budget_from_0_to_1():
    log_p, log_q = random_rows()
    shares = torch.stack([blend(log_p, log_q, budget)[1] for budget in (0, 1e-6, 1e-3, 0.1, 1, 10, 1e3)])
    assert (shares[0] == 0).all()
    assert (shares.diff(dim=0) >= 0).all()
    assert (shares[-1] == 1).all()
    torch.testing.assert_close(blend(log_p, log_q, 0)[0], log_p)
    torch.testing.assert_close(blend(log_p, log_q, 1e3)[0], log_q)


def test_logits_do_and_the_type_of_the_student_is_kept():
    log_p, log_q = random_rows()
    expected, shares = blend(log_p, log_q, 0.1)
    shifted, same = blend((log_p + 3).float(), log_q - 5, 0.1)
    assert shifted.dtype == torch.float32
    torch.testing.assert_close(same, shares, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shifted.double(), expected, rtol=1e-4, atol=1e-4)


def test_work_in_pieces_changes_no_mixture(monkeypatch):
    log_p, log_q = random_rows()
    whole = blend(log_p, log_q, 0.1)
    monkeypatch.setattr(blending, "ELEMENTS_AT_ONCE", 3 * log_p.shape[1])
    for piece, expected in zip(blend(log_p, log_q, 0.1), whole):
        torch.testing.assert_close(piece, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("budget", [-0.1, math.nan])
def test_a_budget_below_0_is_refused(budget):
    with pytest.raises(ValueError, match="0 or more"):
        blend(*random_rows(), budget)


@torch.no_grad()
def next_mixture(pair, prompt, shown, ids, how):
    """(mu, log p) of the next token as lists, by full forwards and plain loops."""
    log_p, log_q = (
        (policy.model(input_ids=torch.tensor([[*start, *ids]])).logits[0, -1] / how.temperature).log_softmax(-1)
        for policy, start in zip(pair, (prompt, shown))
    )
    return slow_blend(log_p.tolist(), log_q.tolist(), how.budget)[0], log_p


def slow_generate(pair, prompt, shown, key, how):
    """One guided response, every token from forwards over all that came before; the nucleus is that of mu."""
    ids, logprobs = [], []
    for draw in keyed.generator(*key).random(how.max_new_tokens):
        mu, log_p = next_mixture(pair, prompt, shown, ids, how)
        nucleus, mass = [], 0.0
        for token in sorted(range(len(mu)), key=lambda v: -mu[v]):
            nucleus.append(token)
            mass += mu[token]
            if mass >= how.top_p:
                break
        below = sum(sum(mu[v] for v in nucleus[: n + 1]) <= draw * mass for n in range(len(nucleus)))
        token = nucleus[min(below, len(nucleus) - 1)]
        ids.append(token)
        logprobs.append(float(log_p[token]))
        if token in how.stop_ids:
            break
    return ids, logprobs


@pytest.mark.parametrize("shown", [None, [(5, 6, 7, 8), (3,), (20, 21), (9, 9, 9, 9)]])
def test_guided_decoding_equals_its_slow_twin(pair, shown):
    asked = requests(2, teacher_prompts=shown)
    for request, group in zip(asked, HFEngine(pair[0], guide=pair[1]).generate(asked, GUIDED)):
        for key, response in zip(request.keys, group):
            ids, logprobs = slow_generate(pair, request.prompt, request.for_teacher, key, GUIDED)
            assert list(response.ids) == ids
            assert response.logprobs == pytest.approx(logprobs, rel=1e-4, abs=1e-4)
            assert response.finished == (ids[-1] == EOS)
            assert response.prefix == 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    settings = [
        ModelSettings(path=make_model(folder / str(seed), seed, std=0.3, vocab_size=8, eos=1), dtype="float64")
        for seed in (1, 2)
    ]
    return [Policy(load_model(s, "student", torch.device("cpu"))) for s in settings]


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_drawn_shares_are_those_of_the_mixture(tiny, top_p):
    how, count, prompt = Sampling(1, 1.0, top_p, (EOS,), budget=0.2), 5000, (3, 4, 5)
    answers = HFEngine(tiny[0], guide=tiny[1]).generate([Request(prompt, tuple((4, n) for n in range(count)))], how)
    seen = torch.bincount(torch.tensor(ids_of(answers)[0]).flatten(), minlength=8)
    mu, log_p = next_mixture(tiny, prompt, prompt, [], how)
    order = sorted(range(8), key=lambda v: -mu[v])
    inside = [v for n, v in enumerate(order) if sum(mu[w] for w in order[:n]) < top_p]
    assert len(inside) > 2
    assert seen[inside].sum() == count
    assert chisquare(seen[inside].numpy(), spread([mu[v] for v in inside], count)).pvalue > 0.01
    # the test can tell the mixture from the student
    assert chisquare(seen[inside].numpy(), spread(log_p[inside].exp().tolist(), count)).pvalue < 1e-6


def spread(weights, count):
    return [count * weight / sum(weights) for weight in weights]


def test_batching_and_order_change_no_guided_response(pair):
    whole = ids_of(HFEngine(pair[0], guide=pair[1]).generate(requests(), GUIDED))
    for batch in (1, 3, 5):
        assert ids_of(HFEngine(pair[0], batch, pair[1]).generate(requests(), GUIDED)) == whole
    assert ids_of(HFEngine(pair[0], guide=pair[1]).generate(requests()[::-1], GUIDED))[::-1] == whole
    assert ids_of(HFEngine(pair[0]).generate(requests(), PLAIN)) != whole


def test_a_guide_that_is_the_student_or_has_no_budget_changes_nothing(pair):
    student, teacher = pair
    plain = HFEngine(student).generate(requests(), PLAIN)
    same = HFEngine(student, guide=student).generate(requests(), GUIDED)
    assert ids_of(same) == ids_of(plain)
    for ours, theirs in zip(same, plain):
        for one, other in zip(ours, theirs):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    unspent = Sampling(20, 0.9, 0.9, (EOS,), budget=0.0)
    assert HFEngine(student, guide=teacher).generate(requests(), unspent) == plain
    assert HFEngine(student, guide=teacher).generate(requests(), PLAIN) == plain


def test_a_boundless_budget_draws_from_the_teacher(pair):
    student, teacher = pair
    how = Sampling(20, 0.9, 0.9, (EOS,), budget=1e6)
    assert ids_of(HFEngine(student, guide=teacher).generate(requests(), how)) == ids_of(
        HFEngine(teacher).generate(requests(), PLAIN)
    )


def test_a_budget_needs_a_guide_of_the_same_vocabulary(pair, tiny):
    with pytest.raises(ValueError, match="needs a guide"):
        HFEngine(pair[0]).generate(requests(), GUIDED)
    with pytest.raises(ValueError, match="the guide has 8 tokens"):
        HFEngine(pair[0], guide=tiny[0]).generate(requests(), GUIDED)


def apart(asked):
    return [Request(r.for_teacher, tuple((*key, "prefix") for key in r.keys)) for r in asked]


@pytest.mark.parametrize("shown", [None, [(5, 6, 7, 8), (3,), (20, 21), (9, 9, 9, 9)]])
@pytest.mark.parametrize("tokens", [1, 6, 20, 99])
def test_the_teacher_writes_the_prefix_and_the_student_goes_on(pair, tokens, shown):
    student, teacher = (HFEngine(policy) for policy in pair)
    asked = requests(teacher_prompts=shown)
    answers = generate_with_prefix(student, teacher, asked, PLAIN, tokens)
    starts = teacher.generate(apart(asked), Sampling(min(tokens, 20), 0.9, 0.9, (EOS,)))
    for request, group, begun in zip(asked, answers, starts):
        for key, response, start in zip(request.keys, group, begun):
            n = response.prefix
            assert (response.ids[:n], response.logprobs[:n]) == (start.ids, start.logprobs)
            if start.finished or tokens >= 20:
                assert n == len(response.ids)
                assert response.finished == start.finished
                continue
            going_on = Request(request.prompt + start.ids, (key,))
            alone = student.generate([going_on], Sampling(20 - n, 0.9, 0.9, (EOS,)))[0][0]
            assert n == tokens
            assert response.ids[n:] == alone.ids
            assert response.logprobs[n:] == pytest.approx(alone.logprobs, abs=1e-5)
            assert response.finished == alone.finished


def test_prefixes_do_not_depend_on_the_batch_and_count_each_response_once(pair):
    student, teacher = pair
    whole = generate_with_prefix(HFEngine(student), HFEngine(teacher), requests(6), PLAIN, 6)
    assert any(r.finished and r.prefix == len(r.ids) for group in whole for r in group)
    for batch in (1, 5):
        counted = []
        engines = HFEngine(student, batch), HFEngine(teacher, batch)
        split = generate_with_prefix(*engines, requests(6), PLAIN, 6, counted.append)
        assert ids_of(split) == ids_of(whole)
        assert sum(counted) == len(PROMPTS) * 6


def test_no_prefix_is_the_student_alone_and_a_budget_is_the_students(pair):
    student, teacher = (HFEngine(policy) for policy in pair)
    assert generate_with_prefix(student, teacher, requests(), PLAIN, 0) == student.generate(requests(), PLAIN)
    shown = [(5, 6, 7, 8), (3,), (20, 21), (9, 9, 9, 9)]
    asked = requests(1, teacher_prompts=shown)
    guided = HFEngine(pair[0], guide=pair[1])
    how = Sampling(6, 0.9, 0.9, (EOS,), budget=0.3)
    for request, [response] in zip(asked, generate_with_prefix(guided, teacher, asked, how, 2)):
        if response.prefix < len(response.ids):
            start = response.ids[:2]
            left = Sampling(4, 0.9, 0.9, (EOS,), budget=0.3)
            ids, _ = slow_generate(pair, request.prompt + start, request.for_teacher + start, request.keys[0], left)
            assert list(response.ids[2:]) == ids


def test_a_reference_solution_as_a_response():
    for ids, whole in (([5, 6], (5, 6, EOS)), ((5, EOS), (5, EOS)), ([], (EOS,))):
        response = reference_response(ids, EOS)
        assert (response.ids, response.finished, response.prefix) == (whole, True, 0)
        assert len(response.logprobs) == len(whole)
        assert all(math.isnan(logp) for logp in response.logprobs)
