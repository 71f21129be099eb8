"""Reading hidden states at completion tokens. Source: our choice [D]."""

from collections.abc import Iterator
from copy import deepcopy

import torch

from enigma.llm.sampling import draw_completions, end_tokens
from enigma.record.progress import track


class StateReader:
    """Reads a model's states at completion tokens. The prompts' common beginning is computed once, not per prompt.

    `model` is used as it is when called: make the reader and read under the same adapter setting.
    """

    def __init__(self, model, prefix: list[int], layers: list[int]):
        self.model, self.prefix, self.layers, self.cache = model, prefix, layers, None
        if prefix:
            with torch.no_grad():
                ids = torch.tensor([prefix], device=model.device)
                self.cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    @torch.no_grad()
    def read(self, prompts: list[list[int]], completions: list[list[int]], *, logits=False):
        """One (hidden (layers, T, d) float32, logits (T, V), None unless asked for) per row.

        hidden[:, t] is the state at completion token t, logits[t] the prediction of that token.
        """
        own = [prompt[len(self.prefix) :] for prompt in prompts]
        rows = [torch.tensor(p + c) for p, c in zip(own, completions, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        # Padding stands on the right, where a causal model does not see it from the tokens that are read.
        mask = torch.ones(len(rows), len(self.prefix) + ids.shape[1], dtype=torch.long)
        for row, tokens in enumerate(rows):
            mask[row, len(self.prefix) + len(tokens) :] = 0
        first = min(map(len, own)) - 1
        output = self.model(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            past_key_values=self._expanded(len(rows)),
            use_cache=self.cache is not None,
            output_hidden_states=True,
            logits_to_keep=ids.shape[1] - first if logits else 1,
        )
        for row, (p, c) in enumerate(zip(own, completions, strict=True)):
            states = [output.hidden_states[i][row, len(p) : len(p) + len(c)] for i in self.layers]
            start = len(p) - 1 - first
            said = output.logits[row, start : start + len(c)] if logits else None
            yield torch.stack(states).float().cpu(), said

    def _expanded(self, rows: int):
        if self.cache is None:
            return None
        cache = deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


@torch.no_grad()
def greedy_completions(
    model, tokenizer, prompts: list[list[int]], max_tokens: int, batch_size: int
) -> list[list[int]]:
    """The model's most likely continuation of each prompt, token by token, its end token included."""
    ends, completions = end_tokens(model, tokenizer), []
    parts = list(batches(len(prompts), batch_size))
    for rows in track(parts, "greedy completions", unit="batch") if len(parts) > 1 else parts:
        completions += draw_completions(model, [prompts[i] for i in rows], max_tokens, ends, greedy=True)
    return completions


def batches(count: int, size: int) -> Iterator[list[int]]:
    """The numbers below `count` in order, `size` at a time."""
    return (list(range(start, min(start + size, count))) for start in range(0, count, size))
