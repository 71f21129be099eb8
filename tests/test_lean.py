"""What is made again in the backward pass is what the forward had, and is not kept in between."""

import pytest
import torch
from test_scoring import KINDS, build, ragged
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from enigma.llm import scoring
from enigma.llm.lean import lean, remake
from enigma.llm.scoring import completion_logprobs


def gradients(model):
    logps = completion_logprobs(model, *ragged()).logps
    logps.sum().backward()
    found = [logps.detach(), *(weight.grad for weight in model.parameters())]
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_the_same_to_the_last_bit(kind, monkeypatch):
    model = build(kind)
    ours = gradients(model)
    monkeypatch.setattr(scoring, "lean", lambda model: torch.enable_grad())
    for one, other in zip(ours, gradients(model), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("within", [True, False])
def test_outputs_of_activation_functions_are_not_kept(within, monkeypatch):
    model, made = build("llama"), []
    for layer in model.model.layers:
        note = lambda _, __, output: made.append(StorageWeakRef(output.untyped_storage()))
        layer.mlp.act_fn.register_forward_hook(note)
    if not within:
        monkeypatch.setattr(scoring, "lean", lambda model: torch.enable_grad())
    logps = completion_logprobs(model, *ragged()).logps
    assert [one.expired() for one in made] == [within] * 3
    logps.sum().backward()


def test_keys_and_values_of_a_prompt_are_not_kept_for_each_completion(monkeypatch):
    hooks, shapes = torch.autograd.graph.saved_tensors_hooks, []

    def noted(pack, unpack):
        def note(saved):
            kept = pack(saved)
            shapes.append(tuple(saved.shape) if kept is saved else "made again")
            return kept

        return hooks(note, unpack)

    monkeypatch.setattr("enigma.llm.lean.saved_tensors_hooks", noted)
    completion_logprobs(build("llama"), [torch.arange(80) + 3], [torch.arange(4)] * 16)
    # Keys and values in three layers, and three outputs of activation functions.
    assert shapes.count("made again") == 9
    assert (16, 2, 84, 8) not in shapes  # completions, heads, prompt and completion, width


@pytest.mark.parametrize("case", ["gone", "another view", "changed in place"])
def test_what_only_lies_at_the_same_address_is_kept_itself(case):
    memory, weight = torch.arange(4.0).view(2, 2).numpy(), torch.ones(2, 2, requires_grad=True)
    with lean(nn.Identity()):
        made = remake(torch.from_numpy(memory), torch.zeros_like, weight)
        if case == "gone":
            del made
            made = torch.from_numpy(memory)
        read = made.T if case == "another view" else made.add_(1) if case == "changed in place" else made
        (weight * read).sum().backward()
    assert torch.equal(weight.grad, read)
