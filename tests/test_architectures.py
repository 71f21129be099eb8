"""The trainer's tests on the shapes of other people's models."""

import pytest
import test_trainer
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SHAPE = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
KINDS = {
    # As Llama 3.2 and Qwen 2.5 have it: tied embeddings, another base of the positions, biases.
    "llama": (LlamaForCausalLM, LlamaConfig, dict(tie_word_embeddings=True, rope_theta=5e5)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, dict(tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, dict(head_dim=16)),
    # Windows shorter than the prompts, and logits that are capped.
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        dict(
            head_dim=16,
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention"],
            final_logit_softcapping=30.0,
        ),
    ),
}


@pytest.fixture(params=KINDS)
def other_model(request, toy_tokenizer):
    model_class, config_class, changes = KINDS[request.param]
    ids = dict(pad_token_id=toy_tokenizer.pad_token_id, eos_token_id=toy_tokenizer.eos_token_id)

    def build(seed=0, dtype=torch.float32):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = model_class(config_class(vocab_size=len(toy_tokenizer), **SHAPE, **ids, **changes)).to(
                dtype
            )
            # Far from uniform and from one another, so that completions differ in probability.
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 and "norm" not in name:
                    torch.nn.init.normal_(parameter, std=0.1)
            model.get_input_embeddings().weight.data.mul_(10)
        return model

    return build


def test_without_extra_terms_it_is_trl(tmp_path, other_model, toy_tokenizer):
    test_trainer.test_without_extra_terms_it_is_trl(tmp_path, other_model, toy_tokenizer, beta=0.05)


def test_gradient_accumulation_gives_the_same_update(tmp_path, other_model, toy_tokenizer):
    test_trainer.test_gradient_accumulation_gives_the_same_update(tmp_path, other_model, toy_tokenizer, True)
