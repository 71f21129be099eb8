"""Attention over packed texts, and the head that makes no logits: the gradient and the ways around them."""

import pytest
import torch
from test_scoring import SIZES, build, dense_sums, ragged, relative
from torch.nn.attention.flex_attention import flex_attention
from transformers import Gemma2Config, Gemma2ForCausalLM

from enigma.llm import flex, head
from enigma.llm import packing as attention
from enigma.llm.packing import NAME
from enigma.llm.scoring import completion_logprobs, pack


def test_the_tree_as_a_mask_of_flexattention_gives_the_same(monkeypatch):
    """Without compiling, in blocks smaller than the texts; only the values, since torch has no backward pass for it here."""

    def through_flex(packing, module, query, key, value, window, dropout=0.0, scaling=None):
        return flex.attend(packing, query, key, value, window, scaling)

    monkeypatch.setattr(flex, "BLOCK", 4)
    monkeypatch.setattr(flex, "_kernel", lambda: flex_attention)
    model = build("gemma3_text").eval()
    prompts, completions = ragged()
    prompts = [torch.cat([torch.arange(3, 9), prompt]) for prompt in prompts]  # so that they share something
    with torch.no_grad():
        expected = completion_logprobs(model, prompts, completions).logps
        monkeypatch.setattr(attention.Packing, "attend", through_flex)
        found = completion_logprobs(model, prompts, completions).logps
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_pair_of_blocks_that_see_each_other_is_left_out(monkeypatch):
    monkeypatch.setattr(flex, "BLOCK", 4)
    made = pack(*ragged(), [[0, 3], [2], [1, 4, 0]]).packing
    n = len(made.line)
    for window in (None, 4):
        mask = flex.block_mask(made, window)
        seen = mask.mask_mod(0, 0, torch.arange(n)[:, None], torch.arange(n))
        blocks = torch.nn.functional.pad(seen, (0, -n % 4, 0, -n % 4))
        blocks = blocks.unflatten(0, (-1, 4)).unflatten(2, (-1, 4))
        needed, listed = blocks.any(3).any(1), mask.to_dense()[0, 0].bool()
        assert (listed | ~needed).all()
        assert listed.float().mean() < 0.8, "and most of what is hidden is"


def test_outside_packed_texts_the_model_is_what_it_was():
    model = build("gemma3_text").eval()
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0

    def used():
        drawn = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
        return model(input_ids=ids, attention_mask=mask).logits, drawn

    before = used()
    completion_logprobs(model, *ragged())
    assert model.config._attn_implementation == NAME
    assert all(map(torch.equal, used(), before))


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


def test_no_logits_are_kept_where_the_head_is_not_trained():
    """It is frozen, or nothing takes a gradient, as where the untrained model is asked."""
    model = build("llama")
    ids = torch.randint(3, 97, (2, 9))
    outputs, trained, _ = head.forward_logps(model, ids, False, input_ids=ids)
    assert outputs.logits.shape == (2, 9, 97)
    with torch.no_grad():
        outputs, logps, _ = head.forward_logps(model, ids, False, input_ids=ids)
    assert outputs.logits is logps and logps.shape == ids.shape
    torch.testing.assert_close(logps, trained, rtol=1e-6, atol=1e-6)
    model.get_output_embeddings().weight.requires_grad_(False)
    outputs, logps, _ = head.forward_logps(model, ids, False, input_ids=ids)
    assert outputs.logits is logps and logps.shape == ids.shape
    assert model(input_ids=ids).logits.shape == (2, 9, 97), "afterwards the head is itself again"


def test_copies_of_the_log_probabilities_are_known_for_what_they_are():
    """As DistributedDataParallel hands them out."""
    model = build("llama").requires_grad_(False)
    ids = torch.randint(3, 97, (2, 9))

    def copied(**inputs):
        outputs = model(**inputs)
        outputs.logits = outputs.logits.clone()
        return outputs

    wrapper = torch.nn.Module()
    wrapper.module, wrapper.forward = model, copied
    assert head.forward_logps(wrapper, ids, False, input_ids=ids)[0].logits.shape == ids.shape


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
    model = build("gemma3_text", final_logit_softcapping=0.5).requires_grad_(False)
    for _ in range(2):  # the second time it is known
        ours = completion_logprobs(model, *ragged()).logps.sum(-1)
        assert relative(ours, dense_sums(model, *ragged())) < 1e-5


def test_capped_attention_scores_are_refused():
    config = Gemma2Config(**SIZES, head_dim=8)
    with pytest.raises(ValueError, match="caps attention scores"):
        completion_logprobs(Gemma2ForCausalLM(config), *ragged())
