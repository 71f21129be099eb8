"""Packed scoring equals one dense padded forward per pair, in value and in gradient."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from enigma.llm import matched
from enigma.llm.scoring import completion_logprobs, pack, shared_prefix

SIZES = dict(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3)
SIZES |= dict(num_attention_heads=4, num_key_value_heads=2)
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
# What else is to be said of each `model_type`.
KINDS = {
    "llama": {},
    "qwen2": {},
    "qwen3": dict(head_dim=16),
    "gemma3_text": dict(head_dim=8, sliding_window=6, layer_types=LAYERS),
}


def build(kind, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | KINDS[kind] | changes)
    return AutoModelForCausalLM.from_config(config).float()


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


def dense_sums(model, prompts, completions):
    """The log-probability of every completion under every prompt."""
    return torch.stack([torch.stack([dense(model, p, c).sum() for c in completions]) for p in prompts])


def assert_as_dense(model, prompts, completions):
    """In value, and in the gradient of every parameter."""
    weights = torch.randn(len(prompts), len(completions), generator=torch.Generator().manual_seed(2))
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = completion_logprobs(model, prompts, completions).logps.sum(-1)
    theirs = dense_sums(model, prompts, completions)
    assert relative(ours, theirs) < 1e-5
    ours, theirs = (torch.autograd.grad((sums * weights).sum(), parameters) for sums in (ours, theirs))
    scale = max(float(g.abs().max()) for g in theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max()) / scale < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapted", [False, True])
def test_equals_dense_forward(kind, adapted):
    """Also with an adapter, and the layers' second forward in the backward pass."""
    model = build(kind)
    if adapted:
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, lora)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    assert_as_dense(model.train(), *ragged())


@torch.no_grad()
def test_scores_do_not_depend_on_how_many_prompts_a_forward_reads(monkeypatch):
    model, (prompts, completions) = build("llama").eval(), ragged()
    spans, groups = torch.tensor([len(c) // 2 for c in completions]), [[0, 2], [1, 2, 3, 4], [2]]
    expected = dense_sums(model, prompts, completions).T
    asked = torch.tensor([[i in group for group in groups] for i in range(len(completions))])
    ids = [[x.tolist() for x in texts] for texts in (prompts, completions)]
    for positions in (1, 10_000):
        monkeypatch.setattr(matched, "POSITIONS", positions)
        found = torch.tensor(matched.score(model, *ids, spans, groups)[1])
        assert torch.equal(found.isnan(), ~asked)
        torch.testing.assert_close(found[asked], expected[asked], rtol=0, atol=1e-4)


def test_shared_prefix_leaves_every_prompt_a_token():
    assert shared_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert shared_prefix([[1, 2], [1, 2]]) == 1
    assert shared_prefix([[1], [1, 2]]) == 0
    assert shared_prefix([[1, 2, 3]]) == 2


@pytest.mark.parametrize("lengths", [(0, 3, 8), (4, 4), (6,)])
def test_what_prompts_share_is_computed_once_and_nothing_changes(lengths):
    """Prompts of one beginning and rests of any length, none among them, equal or not."""
    generator = torch.Generator().manual_seed(5)
    beginning, completions = ragged()[0][1], ragged()[1]
    prompts = [torch.cat([beginning, torch.randint(3, 97, (n,), generator=generator)]) for n in lengths]
    line = pack(prompts, completions, [list(range(len(completions)))] * len(prompts)).packing.line
    shared = shared_prefix([p.tolist() for p in prompts])
    rests = sum(len(prompt) - 1 for prompt in prompts) - (len(prompts) - 1) * shared
    assert len(line) == rests + len(prompts) * sum(len(completion) + 1 for completion in completions)
    assert_as_dense(build("gemma3_text"), prompts, completions)


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
