"""The engine against a decoder without cache or batch, and the sampler against its definition."""

import pytest
import torch
from conftest import make_model
from transformers import AutoModelForCausalLM

from driftgate import keyed
from driftgate.config import ModelSettings
from driftgate.models.load import load_model
from driftgate.models.policy import Policy
from driftgate.rollout import sampling as sampler
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine
from driftgate.rollout.sampling import sample

EOS = 1
PROMPTS = [(7, 8, 9), (10, 11, 12, 13, 14, 15), (20,), (9, 9, 9, 9)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("m") / "m", 5, std=0.25)
    settings = ModelSettings(path=folder, dtype="float64")
    return Policy(load_model(settings, "student", torch.device("cpu")))


def requests(samples=3, seed=0):
    return [Request(p, tuple((seed, i, n) for n in range(samples))) for i, p in enumerate(PROMPTS)]


@torch.no_grad()
def slow_generate(model, prompt, key, how):
    """One response, every token from a forward over all that came before."""
    draws = keyed.generator(*key).random(how.max_new_tokens)
    ids, logprobs = [], []
    for draw in draws:
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1] / how.temperature
        probability = logits.float().softmax(-1).double()
        order = probability.argsort(descending=True)
        nucleus = []
        for token in order.tolist():
            nucleus.append(token)
            if probability[nucleus].sum() >= how.top_p:
                break
        mass = probability[nucleus].cumsum(0)
        place = int((mass <= draw * mass[-1]).sum())
        ids.append(nucleus[min(place, len(nucleus) - 1)])
        logprobs.append(float(probability[ids[-1]].log()))
        if ids[-1] in how.stop_ids:
            break
    return ids, logprobs


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (0.7, 0.5), (1.3, 1.0)])
def test_the_engine_equals_its_slow_twin(policy, temperature, top_p):
    how = Sampling(24, temperature, top_p, (EOS,))
    answers = HFEngine(policy).generate(requests(), how)
    for request, responses in zip(requests(), answers):
        for key, response in zip(request.keys, responses):
            ids, logprobs = slow_generate(policy.model, request.prompt, key, how)
            if top_p < 1:  # without a nucleus tokens are laid out by id, not by probability
                assert list(response.ids) == ids
                torch.testing.assert_close(
                    torch.tensor(response.logprobs), torch.tensor(logprobs), rtol=1e-4, atol=1e-5
                )
            assert response.finished == (response.ids[-1] == EOS)


def test_batching_order_and_neighbours_change_nothing(policy):
    how = Sampling(24, 1.0, 0.9, (EOS,))
    whole = HFEngine(policy).generate(requests(), how)
    assert HFEngine(policy, batch=1).generate(requests(), how) != []
    for batch in (1, 3, 5):
        split = HFEngine(policy, batch=batch).generate(requests(), how)
        assert [[r.ids for r in group] for group in split] == [[r.ids for r in group] for group in whole]
    turned = HFEngine(policy).generate(requests()[::-1], how)[::-1]
    assert [[r.ids for r in group] for group in turned] == [[r.ids for r in group] for group in whole]


def test_samples_of_a_prompt_differ_and_seeds_differ(policy):
    how = Sampling(24, 1.0, 1.0, (EOS,))
    first, second = (HFEngine(policy).generate(requests(4, seed), how) for seed in (0, 1))
    assert len({response.ids for response in first[0]}) == 4
    assert first != second


def test_a_stop_token_ends_a_response_and_stays_in_it(policy):
    responses = [r for group in HFEngine(policy).generate(requests(8), Sampling(60, 1.0, 1.0, (EOS,))) for r in group]
    assert any(r.finished for r in responses)
    for response in responses:
        assert EOS not in response.ids[:-1]
        assert response.finished == (response.ids[-1] == EOS)
        assert response.finished or len(response.ids) == 60


def test_progress_counts_every_response_once_and_is_told_at_every_token(policy):
    """For whoever listens may have to stop the run."""
    told = []
    groups = HFEngine(policy).generate(requests(), Sampling(24, 1.0, 0.9, (EOS,)), told.append)
    assert sum(told) == len(PROMPTS) * 3
    assert len(told) >= max(len(response.ids) for group in groups for response in group)


def test_engine_logprobs_are_the_models_own(policy):
    how = Sampling(24, 0.8, 0.9, (EOS,))
    request = requests()[1]
    response = HFEngine(policy).generate([request], how)[0][0]
    ids = torch.tensor([[*request.prompt, *response.ids]])
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits[0, len(request.prompt) - 1 : -1] / how.temperature
    expected = logits.log_softmax(-1).gather(1, ids[0, len(request.prompt) :, None])[:, 0]
    torch.testing.assert_close(torch.tensor(response.logprobs), expected.float(), rtol=1e-4, atol=1e-5)


def test_decoding_uses_the_live_weights_and_a_cast_copy_only_where_types_differ(tmp_path):
    folder = make_model(tmp_path / "m", 6)
    policy = Policy(AutoModelForCausalLM.from_pretrained(folder))
    assert policy.for_decoding() is policy.model
    policy.compute = "bfloat16"
    copy = policy.for_decoding()
    assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}


def test_sampled_shares_follow_the_nucleus():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    draws = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    ids, logprobs = sample(logits.expand(10_000, -1), draws, top_p=0.9)
    shares = torch.bincount(ids, minlength=4) / 10_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95, rtol=0, atol=2e-4)
    torch.testing.assert_close(logprobs, logits[0][ids], rtol=1e-5, atol=1e-6)


def test_a_nucleus_wider_than_the_first_look_is_whole(monkeypatch):
    logits = torch.randn(64, 500, generator=torch.Generator().manual_seed(0))
    draws = torch.rand(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide = sample(logits, draws, top_p=0.99)[0]
    for widths in ((3,), (3, 40), (600, 700)):
        monkeypatch.setattr(sampler, "NUCLEUS_WIDTHS", widths)
        assert torch.equal(sample(logits, draws, top_p=0.99)[0], wide)


def test_draws_at_the_ends_stay_in_the_vocabulary():
    logits = torch.randn(2, 50)
    ends = torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64)
    for top_p in (0.1, 0.9, 1.0):
        assert sample(logits, ends, top_p)[0].max() < 50


@pytest.mark.parametrize("vocabulary", [5, 256, 700, 1024])
def test_draws_without_a_nucleus_are_the_inverse_of_the_running_mass(vocabulary):
    """Against a running sum in float64, at every place and at those where a block or the vocabulary ends."""
    logits = torch.randn(4000, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 2
    logits[:, ::3] = -torch.inf  # tokens that must never come
    draws = torch.rand(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draws[:20], draws[20:40] = 0.0, 1 - 2**-53
    ids, logprobs = sample(logits, draws, top_p=1.0)
    running = logits.double().softmax(-1).cumsum(-1)
    expected = (running <= draws[:, None]).sum(-1).clamp(max=vocabulary - 1)
    assert (ids % 3 != 0).all()
    off = ids != expected
    assert off.float().mean() < 0.01  # only where a draw lies within rounding of an edge
    edge = torch.minimum(ids, expected)[off, None]
    assert ((running[off].gather(1, edge)[:, 0] - draws[off]).abs() < 1e-5).all()
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, ids[:, None])[:, 0])


def test_a_certain_model_is_certain():
    logits = torch.full((1, 9), -1e4)
    logits[0, 4] = 0.0
    for top_p in (0.9, 1.0):
        assert sample(logits, torch.tensor([0.999], dtype=torch.float64), top_p)[0].item() == 4
