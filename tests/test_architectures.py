"""The trainer on the shapes of other people's models."""

import pytest
import test_trainer
import torch
from test_scoring import LAYERS, build

KINDS = {
    # As Llama 3.2 and Qwen 2.5 have it: tied embeddings, another base of the positions, biases.
    "llama": dict(tie_word_embeddings=True, rope_theta=5e5),
    "qwen2": dict(tie_word_embeddings=True),
    "qwen3": {},
    # Windows shorter than the prompts, and logits that are capped.
    "gemma3_text": dict(head_dim=16, sliding_window=12, layer_types=LAYERS[:2], final_logit_softcapping=30.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_without_extra_terms_it_is_trl(tmp_path, toy_tokenizer, kind):
    sizes = dict(vocab_size=len(toy_tokenizer), num_hidden_layers=2, **KINDS[kind])
    sizes |= dict(pad_token_id=toy_tokenizer.pad_token_id, eos_token_id=toy_tokenizer.eos_token_id)

    def other_model():
        with torch.random.fork_rng():
            model = build(kind, **sizes)
            # Far from uniform and from one another, so that completions differ in probability.
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 and "norm" not in name:
                    torch.nn.init.normal_(parameter, std=0.1)
            model.get_input_embeddings().weight.data.mul_(10)
        return model

    test_trainer.test_without_extra_terms_it_is_trl(tmp_path, other_model, toy_tokenizer, beta=0.05)
