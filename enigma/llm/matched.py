"""Matched sets: the same questions under several principles, sampled and scored under all of them.

Used wherever information about a principle is measured: before training, in creation, and after training. Source:
docs/method.md, eq. 8 (teacher forcing over a completion's own token ids); the layout is our choice [D].
"""

import contextlib
from collections.abc import Callable, Sequence

import torch

from enigma.llm import prompts
from enigma.llm.sampling import sample_completions
from enigma.llm.scoring import completion_logprobs, reasoning_tokens

# Completion tokens of a forward, with one prompt at least: fewer waste time, more take memory.
POSITIONS = 1024


@torch.no_grad()
def sample_and_score(
    model,
    tokenizer,
    questions: Sequence[str],
    texts: Sequence[str],
    style: dict,
    *,
    samples: int,
    max_tokens: int,
    batch_size: int,
    seed: int,
    wordings: Sequence[Sequence[str]] = (),
    sets: Sequence[Sequence[int]] | None = None,
    untrained: Callable[[], contextlib.AbstractContextManager] | None = None,
) -> list[dict]:
    """For each question, `samples` completions under each of K principles, scored under all K.

    Args:
        texts: the K principles. `style`: placement and demonstration (`enigma.llm.prompts.messages`).
        wordings: further wordings of all K, in the same order; completions are scored under these too.
        sets: sets of principles; only completions and principles of one set are scored with each other, and the other
            cells are NaN. By default all are.
        untrained: a context in which `model` is the untrained one; completions are scored under it too.

    Returns:
        For each question a dictionary of JSON values: `source` (N,), the principle of each completion; `tokens` (N,)
        and `texts` (N,); `reasoning` and `completion`, (N, K) summed log-probabilities in nats over the reasoning span
        and over all tokens, the end token of a completion that stopped by itself included; `wordings`, a list of
        (N, K) over the reasoning span; `untrained`, (N, K) over all tokens.
    """
    asked = [_encode(tokenizer, question, texts, style) for question in questions]
    source = [k for k in range(len(texts)) for _ in range(samples)]
    together = [
        {k for one in sets or [range(len(texts))] if own in one for k in one} for own in range(len(texts))
    ]
    groups = [[i for i, own in enumerate(source) if own in mine] for mine in together]
    flat = [ids[k] for ids in asked for k in source]
    drawn = sample_completions(model, tokenizer, flat, max_tokens, batch_size, seed)
    rows = []
    for i, (question, ids) in enumerate(zip(questions, asked, strict=True)):
        mine = drawn[i * len(source) : (i + 1) * len(source)]
        spans = torch.tensor([reasoning_tokens(tokenizer, one) for one in mine])
        row = {"source": source, "tokens": [len(one) for one in mine]}
        row["texts"] = tokenizer.batch_decode(mine, skip_special_tokens=True)
        row["reasoning"], row["completion"] = score(model, ids, mine, spans, groups)
        row["wordings"] = [
            score(model, _encode(tokenizer, question, wording, style), mine, spans, groups)[0]
            for wording in wordings
        ]
        if untrained is not None:
            with untrained():
                row["untrained"] = score(model, ids, mine, spans, groups)[1]
        rows.append(row)
    return rows


@torch.no_grad()
def score(
    model, prompt_ids: list[list[int]], completions: list[list[int]], spans, groups=None
) -> tuple[list, list]:
    """(N, K) summed log-probabilities in nats of N completions under K prompts: over `spans` (N,) tokens, and over all.

    `groups`: for each prompt the completions that are scored under it, by default all; the other cells are NaN.
    """
    device = model.device
    tensors = [torch.tensor(ids, dtype=torch.long, device=device) for ids in completions]
    prompts_ids = [torch.tensor(ids, device=device) for ids in prompt_ids]
    groups = groups or [range(len(completions))] * len(prompt_ids)
    both = torch.full((2, len(completions), len(prompt_ids)), torch.nan)
    together = max(1, POSITIONS // max(1, sum(map(len, completions))))
    for start in range(0, len(prompt_ids), together):
        part = slice(start, start + together)
        logps = completion_logprobs(
            model, prompts_ids[part], tensors, [list(group) for group in groups[part]]
        ).logps
        for k, values in enumerate(logps.cpu(), start):
            mine = torch.tensor(list(groups[k]))
            values = values[: len(mine)]
            within = torch.arange(values.shape[-1]) < spans[mine][:, None]
            both[:, mine, k] = torch.stack([(values * within).sum(-1), values.sum(-1)])
    return both[0].tolist(), both[1].tolist()


def _encode(tokenizer, question: str, texts: Sequence[str], style: dict) -> list[list[int]]:
    return [prompts.encode(tokenizer, prompts.messages(question, text, **style)) for text in texts]
