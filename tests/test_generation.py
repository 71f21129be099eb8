"""Cheaper sampling draws what plain sampling draws."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from enigma.llm.sampling import kept_weights, merged_adapter, prompt_cache, shared_prompts


def gemma(toy_tokenizer):
    """Two kinds of layer, of which one forgets what lies more than six tokens back."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(toy_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0,
        eos_token_id=1,
    )
    return Gemma3ForCausalLM(config)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "lora"])
def test_equal_prompts_are_computed_once_and_nothing_changes(kind, toy_model, toy_tokenizer):
    model = (gemma(toy_tokenizer) if kind == "gemma3" else toy_model()).eval()
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    prompts = ["a long question that has many words", "short", "a long question that has many words", "short"]
    batch = toy_tokenizer(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)

    def sample(**more):
        torch.manual_seed(7)
        options = dict(max_new_tokens=12, min_new_tokens=12, do_sample=True, output_logits=True)
        return model.generate(**batch, **options, return_dict_in_generate=True, **more)

    seen = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: seen.append(args[0].shape)
    )
    plain = sample()
    seen.clear()
    cached = sample(past_key_values=prompt_cache(model, **batch))
    assert seen[0] == (2, batch["input_ids"].shape[1] - 1) and all(shape == (4, 1) for shape in seen[1:])
    hook.remove()
    with shared_prompts(model):
        inside = sample()
    assert "generate" not in vars(model)
    for found in (cached, inside):
        assert torch.equal(found.sequences, plain.sequences)
        assert torch.allclose(torch.stack(found.logits), torch.stack(plain.logits), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_adapter_leaves_no_trace(toy_model, dtype):
    """Merged, the model writes what it writes with its adapter apart; afterwards every bit is as before."""
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(toy_model(dtype=dtype), lora).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.arange(2, 12)[None]
    apart = model(input_ids=ids).logits
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    with merged_adapter(model):
        # In 16 bits most of an adapter would be rounded away.
        assert layer.merged == (dtype == torch.float32)
        together = model(input_ids=ids).logits
    assert torch.allclose(together, apart, rtol=1e-4, atol=1e-4)
    assert not layer.merged
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_sixteen_bit_weights_do_not_drift_with_each_merge(toy_model):
    """As vLLM is given its weights: merged, and taken apart again, a hundred times in a run."""
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(toy_model(dtype=torch.bfloat16), lora).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def sync():
        model.merge_adapter()
        model.unmerge_adapter()

    kept = kept_weights(model)(sync)
    for _ in range(5):
        kept()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for _ in range(5):
        sync()
    assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
