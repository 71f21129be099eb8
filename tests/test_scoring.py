"""Packed scoring equals one dense padded forward per pair, in value and in gradient."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from enigma.llm import matched
from enigma.llm.scoring import completion_logprobs, pack, shared_prefix

SIZES = dict(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)


def build(kind):
    torch.manual_seed(0)
    if kind == "gemma3":
        config = Gemma3TextConfig(
            **SIZES,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
        return Gemma3ForCausalLM(config).float()
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2)).float()
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)).float()


def ragged(seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(3, 97, (n,), generator=generator)
    return [draw(5), draw(9), draw(1)], [draw(4), draw(0), draw(7), draw(12), draw(1)]


def dense(model, prompt, completion):
    """One plain forward of prompt + completion, padded on the right as any batch would be."""
    ids = torch.cat([prompt, completion, torch.zeros(3, dtype=torch.long)])[None]
    mask = torch.ones_like(ids)
    mask[:, len(prompt) + len(completion) :] = 0
    logits = model(input_ids=ids, attention_mask=mask).logits[0].float()
    logps = torch.log_softmax(logits, -1)
    return torch.stack(
        [logps[len(prompt) + t - 1, token] for t, token in enumerate(completion)] or [logits.sum() * 0]
    )


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_equals_dense_forward(kind, lora, checkpointing):
    model = build(kind)
    if lora:
        model = get_peft_model(
            model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        )
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    prompts, completions = ragged()
    weights = torch.randn(len(prompts), len(completions), generator=torch.Generator().manual_seed(2))
    parameters = [p for p in model.parameters() if p.requires_grad]

    packed = completion_logprobs(model, prompts, completions)
    packed_sums = packed.logps.sum(-1)
    packed_gradient = torch.autograd.grad((packed_sums * weights).sum(), parameters)
    dense_sums = torch.stack([torch.stack([dense(model, p, c).sum() for c in completions]) for p in prompts])
    dense_gradient = torch.autograd.grad((dense_sums * weights).sum(), parameters)

    assert relative(packed_sums, dense_sums) < 1e-5
    scale = max(float(g.abs().max()) for g in dense_gradient)
    for a, b in zip(packed_gradient, dense_gradient, strict=True):
        assert float((a - b).abs().max()) / scale < 1e-5


@torch.no_grad()
def test_scores_do_not_depend_on_how_many_prompts_a_forward_reads(monkeypatch):
    model, (prompts, completions) = build("llama").eval(), ragged()
    spans, groups = torch.tensor([len(c) // 2 for c in completions]), [[0, 2], [1, 2, 3, 4], [2]]
    expected = [[dense(model, p, c).sum() for p in prompts] for c in completions]
    for positions in (1, 10_000):
        monkeypatch.setattr(matched, "POSITIONS", positions)
        found = matched.score(
            model, *([x.tolist() for x in ids] for ids in (prompts, completions)), spans, groups
        )[1]
        for i, row in enumerate(found):
            for k, value in enumerate(row):
                assert (
                    value == pytest.approx(float(expected[i][k]), abs=1e-4)
                    if i in groups[k]
                    else math.isnan(value)
                )


def test_shared_prefix_leaves_every_prompt_a_token():
    assert shared_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert shared_prefix([[1, 2], [1, 2]]) == 1
    assert shared_prefix([[1], [1, 2]]) == 0
    assert shared_prefix([[1, 2, 3]]) == 2


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("lengths", [(0, 3, 8), (4, 4), (6,)])
def test_what_prompts_share_is_computed_once_and_nothing_changes(kind, lengths):
    """Prompts of one beginning and rests of any length, none among them, equal or not."""
    model = build(kind)
    generator = torch.Generator().manual_seed(5)
    beginning = ragged()[0][1]
    prompts = [torch.cat([beginning, torch.randint(3, 97, (n,), generator=generator)]) for n in lengths]
    completions = ragged()[1]
    line = pack(prompts, completions, [list(range(len(completions)))] * len(prompts)).packing.line
    rests = sum(len(prompt) - 1 for prompt in prompts) - (len(prompts) - 1) * shared_prefix(
        [p.tolist() for p in prompts]
    )
    assert len(line) == rests + len(prompts) * sum(len(completion) + 1 for completion in completions)
    weights = torch.randn(len(prompts), len(completions), generator=generator)
    parameters = list(model.parameters())
    ours = completion_logprobs(model, prompts, completions).logps.sum(-1)
    theirs = torch.stack([torch.stack([dense(model, p, c).sum() for c in completions]) for p in prompts])
    assert relative(ours, theirs) < 1e-5
    ours, theirs = (torch.autograd.grad((sums * weights).sum(), parameters) for sums in (ours, theirs))
    scale = max(float(g.abs().max()) for g in theirs)
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) / scale < 1e-5


def test_groups_select_pairs_and_mask_covers_the_ragged_tokens():
    model = build("llama").eval()
    prompts, completions = ragged()
    groups = [[0, 3], [2], [1, 4, 0]]
    scores = completion_logprobs(model, prompts, completions, groups)
    for r, group in enumerate(groups):
        for m, i in enumerate(group):
            n = len(completions[i])
            assert scores.mask[r, m].sum() == n
            if n:
                torch.testing.assert_close(
                    scores.logps[r, m, :n], dense(model, prompts[r], completions[i]), rtol=1e-5, atol=1e-5
                )
    assert (scores.logps[~scores.mask] == 0).all()


def test_hidden_states_and_entropy_are_those_of_the_dense_forward():
    model = build("llama").eval()
    prompts, completions = ragged()
    scores = completion_logprobs(model, prompts, completions, layers=(1, -1), entropy=True)
    prompt, completion = prompts[1], completions[3]
    outputs = model(input_ids=torch.cat([prompt, completion])[None], output_hidden_states=True)
    own = torch.stack([outputs.hidden_states[i][0, len(prompt) :] for i in (1, -1)], dim=1)
    torch.testing.assert_close(scores.hidden[1, 3], own, rtol=1e-5, atol=1e-5)
    distribution = torch.distributions.Categorical(logits=outputs.logits[0, len(prompt) - 1 : -1])
    torch.testing.assert_close(scores.entropy[1, 3], distribution.entropy(), rtol=1e-5, atol=1e-5)


def test_a_completion_never_sees_its_neighbour():
    """Changing one completion changes no other one's value."""
    model = build("gemma3").eval()
    prompts, completions = ragged()
    before = completion_logprobs(model, prompts, completions).logps
    changed = list(completions)
    changed[2] = (changed[2] + 1) % 97
    after = completion_logprobs(model, prompts, changed).logps
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(before[:, kept], after[:, kept], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_completions_that_are_all_empty_have_no_tokens():
    nothing = [torch.zeros(0, dtype=torch.long)] * 2
    scores = completion_logprobs(build("llama"), ragged()[0], nothing, layers=(-1,), entropy=True)
    assert scores.logps.shape == scores.mask.shape == scores.entropy.shape == (3, 2, 0)
    assert scores.hidden.shape == (3, 2, 0, 1, 32)


def test_bad_input_is_refused():
    model = build("llama")
    with pytest.raises(ValueError, match="prompt is empty"):
        completion_logprobs(model, [torch.zeros(0, dtype=torch.long)], [torch.ones(2, dtype=torch.long)])
    with pytest.raises(ValueError, match="2 prompts need as many groups"):
        completion_logprobs(model, ragged()[0][:2], ragged()[1], [[0]])
