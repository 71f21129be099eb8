"""Drawing completions at less cost, without changing what is drawn."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import DynamicCache


@torch.no_grad()
def prompt_cache(model, input_ids: Tensor, attention_mask: Tensor) -> DynamicCache:
    """The key-value cache of a left-padded batch (B, P) up to its last token, computed once for rows that are equal.

    Pass it to `model.generate` as `past_key_values` with the same batch. With G completions for each prompt the prompt's
    forward costs 1/G. Source: our choice.
    """
    both = torch.stack([input_ids, attention_mask])[..., :-1]
    (ids, mask), rows = torch.unique(both, dim=1, return_inverse=True)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
    cache.batch_select_indices(rows)
    return cache


@torch.no_grad()
def sample_completions(
    model, tokenizer, encoded: list[list[int]], max_tokens: int, batch_size: int, seed: int
):
    """One completion for each encoded prompt: temperature 1, no truncation of the distribution, end token kept.

    Returns lists of token ids of at most `max_tokens`. Sampling has its own seed and leaves the global generators as
    they were. Source: docs/method.md, eq. 9 (the bounds hold for on-policy samples).
    """
    devices = [model.device] if model.device.type == "cuda" else []
    completions = []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, len(encoded), batch_size):
            batch = tokenizer.pad(
                {"input_ids": encoded[start : start + batch_size]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            output = model.generate(
                **batch,
                past_key_values=prompt_cache(model, **batch),
                max_new_tokens=max_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                pad_token_id=tokenizer.pad_token_id,
            )
            ends = _end_tokens(model, tokenizer)
            completions += [
                _until_end(ids, ends) for ids in output[:, batch["input_ids"].shape[1] :].tolist()
            ]
    return completions


def _end_tokens(model, tokenizer) -> set[int]:
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return {token for token in [*ends, tokenizer.eos_token_id] if token is not None}


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    for t, token in enumerate(ids):
        if token in ends:
            return ids[: t + 1]
    return ids


@contextmanager
def shared_prompts(model):
    """Inside, `model.generate` computes equal prompts once."""
    generate = model.generate

    def generate_from_cache(input_ids, attention_mask, **options):
        cache = prompt_cache(model, input_ids, attention_mask)
        return generate(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, **options)

    model.generate = generate_from_cache
    try:
        yield
    finally:
        del model.generate


@contextmanager
def merged_adapter(model):
    """LoRA folded into float32 weights while completions are drawn; afterwards the weights are what they were.

    A separate adapter costs a fifth of a generation step. In 16 bits most of an adapter would be rounded away, so there
    it stays apart.
    """
    weights = _adapted(model)
    if not weights or any(weight.dtype != torch.float32 for weight in weights):
        yield
        return
    with kept_weights(model):
        model.merge_adapter()
        try:
            yield
        finally:
            model.unmerge_adapter()


@contextmanager
def kept_weights(model):
    """What is inside may fold adapters into weights and take them out again, which rounds; afterwards every bit is as before.

    In bfloat16 a hundred such rounds change every tenth of these weights.
    """
    kept = [(weight, weight.detach().clone()) for weight in _adapted(model)]
    try:
        yield
    finally:
        for weight, before in kept:
            weight.data.copy_(before)


def _adapted(model) -> list[Tensor]:
    """The weights that adapters stand beside."""
    return [layer.get_base_layer().weight for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
