"""Cheaper sampling draws what plain sampling draws."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_scoring import build

from enigma.llm.sampling import Writer, draw_completions, kept_weights, merged_adapter, weights_first


def with_adapter(model, *targets):
    lora = LoraConfig(r=4, target_modules=list(targets), init_lora_weights=False)
    return get_peft_model(model, lora).eval()


@pytest.mark.parametrize("shape", [(3,), (1, 5), (2, 300)], ids=["a row", "few", "many"])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_products_are_those_of_the_layer_and_leave_it_as_it_was(shape, bias):
    layer = torch.nn.Linear(16, 24, bias=bias)
    x = torch.randn(*shape, 16)
    expected = layer(x)
    with pytest.raises(KeyError), weights_first(torch.nn.Sequential(layer)):
        torch.testing.assert_close(layer(x), expected)
        assert "forward" in layer.__dict__
        raise KeyError
    assert torch.equal(layer(x), expected) and "forward" not in layer.__dict__


def test_a_replaced_forward_is_neither_passed_over_nor_removed():
    layer = torch.nn.Linear(4, 4)
    layer.forward = hook = lambda x: x + 1
    with weights_first(torch.nn.Sequential(layer)):
        assert layer(torch.zeros(1, 4)).sum() == 4
    assert layer.forward is hook


LONG, SHORT, OTHER = list(range(10, 34)), list(range(10, 20)), [*range(10, 19), 40, 41]
BATCHES = {
    "siblings": [LONG, SHORT, LONG, LONG, OTHER],
    "one prompt": [LONG, LONG],
    "nothing shared": [LONG, [5, 6]],
    "one token": [[5], [7, 8, 9], [5]],
}


def some_model(kind, toy_model, toy_tokenizer):
    if kind == "gemma3":  # some of its layers forget what lies more than six tokens back
        return build("gemma3_text", vocab_size=len(toy_tokenizer), pad_token_id=0, eos_token_id=1).eval()
    return with_adapter(toy_model(), "q_proj") if kind == "lora" else toy_model().eval()


@pytest.mark.parametrize("prompts", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("kind", ["llama", "gemma3", "lora"])
@torch.no_grad()
def test_every_token_has_the_probability_of_a_dense_forward(kind, prompts, toy_model, toy_tokenizer):
    """At every step, also where the stored keys have grown and after rows have left, in whatever order."""
    model = some_model(kind, toy_model, toy_tokenizer)
    writer, texts = Writer(model, prompts), [list(prompt) for prompt in prompts]
    generator = torch.Generator().manual_seed(3)
    for step in range(70):
        logits = writer.step(torch.tensor([text[-1] for text in texts]))
        if step in (0, 1, 4, 64, 69):
            for found, text in zip(logits, texts, strict=True):
                expected = model(input_ids=torch.tensor([text])).logits[0, -1]
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        if step == 3 and len(texts) > 1:
            going = torch.arange(len(texts)) != len(texts) // 2
            writer.keep(going)
            texts = [text for text, goes in zip(texts, going, strict=True) if goes]
        for text in texts:
            text.append(int(torch.randint(2, 90, (1,), generator=generator)))


@pytest.mark.parametrize("kind", ["llama", "gemma3", "lora"])
def test_the_draws_are_those_of_transformers_and_prompts_are_read_once(kind, toy_model, toy_tokenizer):
    model = some_model(kind, toy_model, toy_tokenizer)
    prompts = [LONG, SHORT, LONG, SHORT, LONG, LONG]
    batch = toy_tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    ends = list(range(2, 12))  # so many that rows end soon, each at its own time
    torch.manual_seed(7)
    plain = model.generate(
        **batch, max_new_tokens=12, do_sample=True, top_k=0, eos_token_id=ends, pad_token_id=0
    )
    plain = plain[:, len(LONG) :].tolist()
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, _: seen.append(args[0].numel()))
    torch.manual_seed(7)
    drawn = draw_completions(model, prompts, 12, ends)
    assert [one + [0] * (len(plain[0]) - len(one)) for one in drawn] == plain
    assert len({len(one) for one in drawn}) > 1
    assert seen[:2] == [len(LONG) - 1, len(prompts)], "what the short prompt has is all in the long one"
    assert seen[1:] == sorted(seen[1:], reverse=True) and seen[-1] < len(prompts), "rows leave the batch"


def test_an_empty_prompt_is_refused(toy_model):
    with pytest.raises(ValueError, match="a prompt is empty"):
        draw_completions(toy_model(), [[5], []], 2, ())


def whether_unchanged(model):
    """A function that says whether the weights are still, bit by bit, what they are now."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    return lambda: all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_adapter_leaves_no_trace(toy_model, dtype):
    """Merged, the model writes what it writes with its adapter apart; afterwards every bit is as before."""
    model = with_adapter(toy_model(dtype=dtype), "q_proj", "v_proj")
    unchanged = whether_unchanged(model)
    ids = torch.arange(2, 12)[None]
    apart = model(input_ids=ids).logits
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    with merged_adapter(model):
        # In 16 bits most of an adapter would be rounded away.
        assert layer.merged == (dtype == torch.float32)
        together = model(input_ids=ids).logits
    assert torch.allclose(together, apart, rtol=1e-4, atol=1e-4)
    assert not layer.merged and unchanged()


def test_sixteen_bit_weights_do_not_drift_with_each_merge(toy_model):
    """As vLLM is given its weights: merged, and taken apart again, a hundred times in a run."""
    model = with_adapter(toy_model(dtype=torch.bfloat16), "q_proj", "v_proj")
    unchanged = whether_unchanged(model)

    def sync():
        model.merge_adapter()
        model.unmerge_adapter()

    kept = kept_weights(model)(sync)
    for _ in range(5):
        kept()
    assert unchanged()
    for _ in range(5):
        sync()
    assert not unchanged()
