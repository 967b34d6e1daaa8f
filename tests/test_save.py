"""A model written layer by layer: a folder that transformers loads, with one group of tensors in memory at a time."""

import gc
import json
import weakref

import pytest
import torch
from conftest import make_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from driftgate.models.policy import Policy
from driftgate.models.save import by_layer, persistent_buffers, save_layers


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def saved(request, tmp_path):
    """A policy and its tokenizer."""
    folder = make_model(tmp_path / "plain", 1, layers=3, tied=request.param)
    return Policy(AutoModelForCausalLM.from_pretrained(folder)), AutoTokenizer.from_pretrained(folder)


class Reader:
    """Hands out copies, as one that reads them from a disk does, and notes what is asked for and what is still held."""

    def __init__(self):
        self.groups, self.handed, self.held = [], [], []

    def __call__(self, like):
        gc.collect()
        self.held.append([name for name, tensor in self.handed if tensor() is not None])
        self.groups.append(list(like))
        made = {name: value.detach().clone() for name, value in like.items()}
        self.handed += [(name, weakref.ref(value)) for name, value in made.items()]
        return made


def test_no_more_than_one_group_is_held(saved, tmp_path):
    policy, tokenizer = saved
    reader = Reader()
    save_layers(policy, tokenizer, tmp_path / "model", reader)
    assert len(reader.handed) == len(list(policy.model.named_parameters()))
    assert reader.held == [[] for _ in reader.groups]


def test_the_folder_loads_with_equal_tensors(saved, tmp_path):
    policy, tokenizer = saved
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.add_(number)  # other weights than those of the folder that the policy came from
    save_layers(policy, tokenizer, tmp_path / "model", Reader())
    found, kept = AutoModelForCausalLM.from_pretrained(tmp_path / "model"), policy.model.state_dict()
    assert found.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in found.state_dict().items())
    tied = found.get_input_embeddings().weight is found.get_output_embeddings().weight
    assert tied == found.config.tie_word_embeddings == policy.model.config.tie_word_embeddings
    one, other = (model.config.to_dict() | {"_name_or_path": ""} for model in (found, policy.model))
    assert one == other
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == tokenizer.get_vocab()


def test_buffers_that_belong_to_the_model_are_saved(saved, tmp_path):
    policy, tokenizer = saved
    policy.model.model.register_buffer("scale", torch.tensor([2.0]))
    policy.model.model.register_buffer("scratch", torch.tensor([3.0]), persistent=False)
    assert list(persistent_buffers(policy.model)) == ["model.scale"]
    save_layers(policy, tokenizer, tmp_path / "model", Reader())
    files = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    assert load_file(tmp_path / "model" / files["model.scale"])["model.scale"].item() == 2.0


def test_groups_are_layers_and_single_tensors(saved, tmp_path):
    policy, tokenizer = saved
    reader = Reader()
    save_layers(policy, tokenizer, tmp_path / "model", reader)
    layers = [group for group in reader.groups if len(group) > 1]
    assert [{name.split(".")[2] for name in group} for group in layers] == [{"0"}, {"1"}, {"2"}]
    assert len({len(group) for group in layers}) == 1
    head = [] if policy.model.config.tie_word_embeddings else [["lm_head.weight"]]
    alone = [group for group in reader.groups if len(group) == 1]
    assert alone == [["model.embed_tokens.weight"], ["model.norm.weight"], *head]


def test_experts_belong_to_their_layer():
    names = ["blocks.1.a", "embed", "blocks.0.a", "blocks.1.b", "blocks.0.experts.3.a", "blocks.10.a"]
    groups = by_layer({name: torch.zeros(1) for name in names})
    assert [list(group) for group in groups] == [
        ["blocks.1.a", "blocks.1.b"],
        ["embed"],
        ["blocks.0.a", "blocks.0.experts.3.a"],
        ["blocks.10.a"],
    ]
