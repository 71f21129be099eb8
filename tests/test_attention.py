"""Attention over packed texts, and the head that makes no logits: the gradient and the ways around them."""

import pytest
import torch
from test_scoring import SIZES, build, dense, ragged, relative
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from enigma.llm import flex, head
from enigma.llm import packing as attention
from enigma.llm.packing import NAME, Join, Packing, Split
from enigma.llm.scoring import completion_logprobs, pack


def packing() -> Packing:
    return pack(*ragged(), [[0, 3], [2], [1, 4, 0]]).packing


def test_split_and_join_are_inverse_and_their_gradients_exact():
    made = packing()
    x = torch.randn(len(made.line), 2, 3, dtype=torch.float64, requires_grad=True)
    joined = Join.apply(made, *Split.apply(x, made))
    torch.testing.assert_close(joined, x, rtol=0, atol=0)
    assert torch.autograd.gradcheck(lambda t: Split.apply(t, made), (x,))
    parts = [part.detach().clone().requires_grad_() for part in Split.apply(x, made)]
    assert torch.autograd.gradcheck(lambda *levels: Join.apply(made, *levels), parts)


@pytest.mark.parametrize("window", [None, 4])
def test_the_masks_are_those_of_each_text_by_itself(window):
    """For every two tokens of the line: visible exactly where one plain causal text holds both, inside the window."""
    made = Packing([torch.tensor([2]), torch.tensor([3, 0]), torch.tensor([2, 1, 0, 4])])
    texts = [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 7], [0, 1], [0, 1, 8, 9, 10, 11]]
    expected = torch.zeros(12, 12, dtype=torch.bool)
    for text in texts:
        for at, query in enumerate(text):
            expected[query, text[max(0, at - window + 1) if window else 0 : at + 1]] = True
            assert made.line[query] == at
    # A level's keys, as tokens of the line: its ancestors' and its own; -1 is padding.
    shared, rest = torch.tensor([[0, 1]]), torch.tensor([[2, 3, 4], [-1, -1, -1]])
    own = torch.tensor([[5, 6, -1, -1], [7, -1, -1, -1], [-1, -1, -1, -1], [8, 9, 10, 11]])
    keys = [
        shared,
        torch.cat([shared.repeat(2, 1), rest], 1),
        torch.cat([shared.repeat(4, 1), rest.repeat_interleave(2, 0), own], 1),
    ]
    found = torch.zeros_like(expected)
    for mask, key, query in zip(made.masks(window), keys, (shared, rest, own), strict=True):
        for text in range(len(key)):
            for i, j in mask[text, 0].nonzero().tolist():
                if query[text, i] >= 0:
                    assert key[text, j] >= 0, "padding is never seen"
                    found[query[text, i], key[text, j]] = True
        assert mask.any(-1).all(), "a row without any key would be NaN"
    assert torch.equal(found, expected)
    sees = flex.block_mask(made, window).mask_mod
    every = torch.arange(12)
    assert torch.equal(sees(0, 0, every[:, None], every), expected)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_the_tree_as_a_mask_of_flexattention_gives_the_same(kind, monkeypatch):
    """Without compiling, in blocks smaller than the texts; only the values, since torch has no backward pass for it here."""
    monkeypatch.setattr(flex, "BLOCK", 4)
    monkeypatch.setattr(flex, "_kernel", lambda: flex_attention)
    model = build(kind).eval()
    with torch.no_grad():
        expected = completion_logprobs(model, *ragged()).logps
        monkeypatch.setattr(attention.Packing, "attend", through_flex)
        found = completion_logprobs(model, *ragged()).logps
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def through_flex(packing, module, query, key, value, window, dropout=0.0, scaling=None):
    return flex.attend(packing, query, key, value, window, scaling)


def test_no_pair_of_blocks_that_see_each_other_is_left_out(monkeypatch):
    monkeypatch.setattr(flex, "BLOCK", 4)
    made = packing()
    n = len(made.line)
    for window in (None, 4):
        mask = flex.block_mask(made, window)
        seen = mask.mask_mod(0, 0, torch.arange(n)[:, None], torch.arange(n))
        blocks = (
            torch.nn.functional.pad(seen, (0, -n % 4, 0, -n % 4)).unflatten(0, (-1, 4)).unflatten(2, (-1, 4))
        )
        needed, listed = blocks.any(3).any(1), mask.to_dense()[0, 0].bool()
        assert (listed | ~needed).all()
        assert listed.float().mean() < 0.8, "and most of what is hidden is"


def test_outside_packed_texts_the_model_is_what_it_was():
    model = build("gemma3").eval()
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    before = model(input_ids=ids, attention_mask=mask).logits
    drawn = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    completion_logprobs(model, *ragged())
    assert model.config._attn_implementation == NAME
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)
    assert torch.equal(
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False), drawn
    )


def test_a_model_with_an_attention_of_its_own_is_refused(monkeypatch):
    monkeypatch.setattr(attention, "install", lambda model: None)
    monkeypatch.setattr("enigma.llm.scoring.install", lambda model: None)
    with pytest.raises(ValueError, match="attention is not one of transformers' interface"):
        completion_logprobs(build("llama"), *ragged())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_head_s_gradient_is_autograd_s(dtype):
    generator = torch.Generator().manual_seed(0)
    n, v = head.POSITIONS + 90, 2 * head.VOCABULARY + 30  # more than one piece of both
    hidden = torch.randn(n, 16, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(v, 16, generator=generator, dtype=dtype)
    weight[-1] *= 30  # the last block brings the largest logits, which scale all sums before
    labels = torch.randint(v, (n,), generator=generator)
    upstream = torch.randn(n, generator=generator, dtype=dtype)
    logps, entropies = head._ChosenLogps.apply(hidden, weight, labels)
    plain = torch.distributions.Categorical(logits=hidden @ weight.T)
    torch.testing.assert_close(logps, plain.log_prob(labels))
    torch.testing.assert_close(entropies, plain.entropy())
    ours = torch.autograd.grad((logps * upstream).sum(), hidden)
    theirs = torch.autograd.grad((plain.log_prob(labels) * upstream).sum(), hidden)
    torch.testing.assert_close(ours, theirs)


def test_with_a_frozen_head_no_logits_are_kept():
    model = build("llama")
    model.get_output_embeddings().weight.requires_grad_(False)
    ids = torch.randint(3, 97, (2, 9))
    outputs, logps, _ = head.forward_logps(model, ids, False, input_ids=ids)
    assert outputs.logits is logps and logps.shape == ids.shape
    assert model(input_ids=ids).logits.shape == (2, 9, 97), "afterwards the head is itself again"


def test_a_head_that_could_be_trained_makes_no_logits_where_nothing_is():
    """The untrained model's own weights ask for a gradient, also where none is taken."""
    model = build("llama")
    ids = torch.randint(3, 97, (2, 9))
    with torch.no_grad():
        outputs, logps, _ = head.forward_logps(model, ids, False, input_ids=ids)
    assert outputs.logits.shape == ids.shape
    outputs, trained, _ = head.forward_logps(model, ids, False, input_ids=ids)
    assert outputs.logits.shape == (2, 9, 97)
    torch.testing.assert_close(logps, trained, rtol=1e-6, atol=1e-6)


def test_copies_of_the_log_probabilities_are_known_for_what_they_are():
    """As DistributedDataParallel hands them out."""
    model = build("llama").requires_grad_(False)
    ids = torch.randint(3, 97, (2, 9))

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model

        def forward(self, **inputs):
            outputs = self.module(**inputs)
            outputs.logits = outputs.logits.clone()
            return outputs

    assert head.forward_logps(Wrapper(), ids, False, input_ids=ids)[0].logits.shape == ids.shape


def test_logits_are_not_rounded_to_sixteen_bits():
    """Of bfloat16 states and weights the log-probabilities are those of float32 products, autocast or not."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator).bfloat16() for n in (40, 2500))
    labels = torch.randint(0, 2500, (40,), generator=generator)
    exact = torch.log_softmax(hidden.double() @ weight.double().T, -1).gather(-1, labels[:, None])[:, 0]
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = head._ChosenLogps.apply(hidden, weight, labels)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-4)


def test_logits_that_are_changed_afterwards_go_the_ordinary_way():
    torch.manual_seed(0)
    config = Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.5)
    model = Gemma3ForCausalLM(config).float().requires_grad_(False)
    prompts, completions = ragged()
    for _ in range(2):  # the second time it is known
        ours = completion_logprobs(model, prompts, completions).logps.sum(-1)
        theirs = torch.stack([torch.stack([dense(model, p, c).sum() for c in completions]) for p in prompts])
        assert relative(ours, theirs) < 1e-5


def test_capped_attention_scores_are_refused():
    config = Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8)
    with pytest.raises(ValueError, match="caps attention scores"):
        completion_logprobs(Gemma2ForCausalLM(config), *ragged())
