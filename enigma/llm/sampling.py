"""Drawing completions: the model's own distribution, at temperature 1 and uncut, with every prompt read once.

What all prompts share is stored once and attended to once, the rest of a prompt once for all its completions, and rows
that have ended leave the batch. The layout is the tree of `enigma.llm.scoring`, so a token is drawn from the very
distribution that it is scored under. Source: our choice [D].
"""

from collections.abc import Collection
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from enigma.llm.packing import Packing, install, line_inputs, split
from enigma.llm.prompts import encode
from enigma.llm.scoring import shared_prefix

ROOM = 64  # tokens that the rows' keys and values grow by
GONE = 0.25  # the share of rows that have ended from which on it pays to copy the others


@torch.no_grad()
def draw_completions(
    model, prompts: list[list[int]], max_tokens: int, ends: Collection[int], *, greedy: bool = False
) -> list[list[int]]:
    """One completion for each encoded prompt, of at most `max_tokens` token ids, an end token kept.

    Drawn at temperature 1 from the whole distribution, with torch's global generator, in the stream of `generate` of
    transformers; or the most likely token each time, if `greedy`. A row's draws do not depend on when others end.

    Raises:
        ValueError: an empty prompt, or a model whose attention is not one of transformers' interface.
    """
    writer = Writer(model, prompts)
    token = torch.tensor([prompt[-1] for prompt in prompts], device=model.device)
    stop = torch.tensor(sorted(ends), dtype=torch.long, device=model.device)
    rows = torch.arange(len(prompts), device=model.device)
    ended = torch.zeros_like(rows, dtype=torch.bool)
    drawn = token.new_zeros(len(prompts), max_tokens)
    with weights_first(model):
        for t in range(max_tokens):
            logits = writer.step(token).float()
            if not greedy:
                # As torch.multinomial has it: the least of exponential waiting times. All rows draw, also those that have gone.
                waiting = torch.empty(len(prompts), logits.shape[1], device=model.device).exponential_()
                logits = torch.softmax(logits, dim=-1) / waiting[rows]
            token = logits.argmax(-1)
            drawn[rows, t] = token
            ended |= torch.isin(token, stop)
            if (gone := float(ended.float().mean())) == 1:
                break
            if gone > GONE:
                going = ~ended
                writer.keep(going)
                rows, token, ended = rows[going], token[going], ended[going]
    return [_until_end(ids, ends) for ids in drawn.tolist()]


@torch.no_grad()
def sample_completions(
    model, tokenizer, encoded: list[list[int]], max_tokens: int, batch_size: int, seed: int
) -> list[list[int]]:
    """`draw_completions` in batches, with a seed of its own; the global generators stay as they were."""
    devices = [model.device] if model.device.type == "cuda" else []
    completions = []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, len(encoded), batch_size):
            batch = encoded[start : start + batch_size]
            completions += draw_completions(model, batch, max_tokens, end_tokens(model, tokenizer))
    return completions


def sampled_rows(model, tokenizer, rows: list[dict], generations: int, **options) -> list[dict]:
    """`generations` completions of each row's `prompt` (messages): the row itself with `prompt_ids`, `completion_ids`,
    `completion` (text) and `tokens`. `options`: max_tokens, batch_size and seed of `sample_completions`."""
    asked = [
        row | {"prompt_ids": encode(tokenizer, row["prompt"])} for row in rows for _ in range(generations)
    ]
    drawn = sample_completions(model, tokenizer, [row["prompt_ids"] for row in asked], **options)
    texts = tokenizer.batch_decode(drawn, skip_special_tokens=True)
    return [
        row | {"completion_ids": ids, "completion": text, "tokens": len(ids)}
        for row, ids, text in zip(asked, drawn, texts, strict=True)
    ]


def end_tokens(model, tokenizer) -> set[int]:
    """Every token that ends a completion."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return {token for token in [*ends, tokenizer.eos_token_id] if token is not None}


def _until_end(ids: list[int], ends: Collection[int]) -> list[int]:
    end = next((t + 1 for t, token in enumerate(ids) if token in ends), len(ids))
    return ids[:end]


class Writer:
    """Rows that are written token by token, one for each of B prompts, equal ones among them or not.

    To the model it is what a `Packing` is: `line`, the new tokens' positions, and `attend`.
    Keys and values lie in three levels: of what all prompts share, (S, H', D); of the rest of each different prompt but
    its last token, (U, R, H', D); and of each row's own tokens, that last one first, (B, H', room, D).
    """

    def __init__(self, model, prompts: list[list[int]]):
        if not all(prompts):
            raise ValueError("a prompt is empty: its last token predicts the completion's first")
        install(model)
        self.model, self.used, self.length = model, False, 0
        different = list(dict.fromkeys(map(tuple, prompts)))
        shared = shared_prefix(different)
        device = model.device
        rests = [len(prompt) - 1 - shared for prompt in different]
        read = _Read([torch.tensor([shared], device=device), torch.tensor(rests, device=device)])
        if len(read.line):
            ids = [*different[0][:shared], *(token for prompt in different for token in prompt[shared:-1])]
            model(**line_inputs(torch.tensor(ids, device=device), read), logits_to_keep=1)
        self.read, self.valid, self.shared = read.kept, read.valid[1], shared
        self.own: dict = {}
        self.prompt = torch.tensor([different.index(tuple(prompt)) for prompt in prompts], device=device)
        self.start = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        self._arrange()

    def step(self, token: Tensor) -> Tensor:
        """Append a token (n,) to each row; the logits (n, V) of the next one."""
        self.line = self.start + self.length
        self._hidden: dict = {}
        outputs = self.model(**line_inputs(token, self), logits_to_keep=len(token))
        if not self.used:
            raise ValueError(
                f"{type(self.model).__name__}: its attention is not one of transformers' interface"
            )
        self.length += 1
        return outputs.logits[0].contiguous()

    def keep(self, going: Tensor) -> None:
        """Go on with these rows (n,) bool alone."""
        self.own = {module: [x[going] for x in pair] for module, pair in self.own.items()}
        self.start = self.start[going]
        left, self.prompt = torch.unique(self.prompt[going], return_inverse=True)
        self.valid = self.valid[left]
        self.read = {module: (first, [x[left] for x in rest]) for module, (first, rest) in self.read.items()}
        self._arrange()

    def _arrange(self) -> None:
        """Rows as a grid (U, most rows of a prompt), and each row's place in it; empty places repeat row 0."""
        count = torch.bincount(self.prompt, minlength=len(self.valid))
        order = torch.argsort(self.prompt, stable=True)
        slot = torch.empty_like(order)
        slot[order] = (
            torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[self.prompt[order]]
        )
        self.place = self.prompt * int(count.max()) + slot
        self.grid = torch.zeros(len(count) * int(count.max()), dtype=torch.long, device=order.device)
        self.grid[self.place] = torch.arange(len(order), device=order.device)
        self.grid = self.grid.view(len(count), -1)

    def attend(self, module, query, key, value, window, dropout=0.0, scaling=None) -> Tensor:
        """The new tokens' queries (n, H, D), keys and values (n, H', D) to (n, H, D)."""
        n, heads, d = query.shape
        groups = key.shape[1]
        own = self._append(module, key, value)
        first, rest = self.read.get(module) or _nothing(key, len(self.valid))
        query = (query * (d**-0.5 if scaling is None else scaling)).view(n, groups, heads // groups, d)
        scores = [self._once(query, first[0].mT), self._by_prompt(query, rest[0].mT), query @ own[0].mT]
        sizes = [part.shape[-1] for part in scores]
        scores = torch.cat(scores, dim=-1).float()
        weights = (
            scores.masked_fill_(self._hides(window)[:, None, None], -torch.inf).softmax(-1).to(value.dtype)
        )
        weights = weights.split(sizes, dim=-1)
        mixed = self._once(weights[0], first[1]) + self._by_prompt(weights[1], rest[1]) + weights[2] @ own[1]
        return mixed.reshape(n, heads, -1)

    def _once(self, x: Tensor, matrix: Tensor) -> Tensor:
        """(n, H', h, a) times what all rows share, (H', a, b)."""
        n, groups, heads, _ = x.shape
        return (x.transpose(0, 1).flatten(1, 2) @ matrix).view(groups, n, heads, -1).transpose(0, 1)

    def _by_prompt(self, x: Tensor, matrix: Tensor) -> Tensor:
        """(n, H', h, a) times what the rows of a prompt share, (U, H', a, b)."""
        u, most = self.grid.shape
        _, groups, heads, _ = x.shape
        gridded = x[self.grid].transpose(1, 2).flatten(2, 3) @ matrix
        return gridded.view(u, groups, most, heads, -1).transpose(1, 2).flatten(0, 1)[self.place]

    def _append(self, module, key: Tensor, value: Tensor) -> list[Tensor]:
        """Each row's own keys and values so far, (n, H', length + 1, D)."""
        if self.length % ROOM == 0:
            more = [x.new_zeros(*x.shape[:2], ROOM, x.shape[2]) for x in (key, value)]
            before = self.own.get(module)
            self.own[module] = (
                [torch.cat(pair, dim=2) for pair in zip(before, more, strict=True)] if before else more
            )
        for stored, new in zip(self.own[module], (key, value), strict=True):
            stored[:, :, self.length] = new
        return [x[:, :, : self.length + 1] for x in self.own[module]]

    def _hides(self, window: int | None) -> Tensor:
        """(n, keys) bool: padding, and what lies too far back."""
        if window not in self._hidden:
            n, device = len(self.start), self.start.device
            shared, rest = self.shared, self.valid.shape[1]
            own = torch.arange(self.length + 1, device=device)
            hidden = torch.zeros(n, shared + rest + len(own), dtype=torch.bool, device=device)
            hidden[:, shared : shared + rest] = ~self.valid[self.prompt]
            if window:
                read = torch.arange(shared + rest, device=device).expand(n, -1)
                hidden |= self.line[:, None] - torch.cat([read, self.start[:, None] + own], dim=1) >= window
            self._hidden[window] = hidden
        return self._hidden[window]


class _Read(Packing):
    """Prompts that are read once; `kept` holds of each layer the keys and values of the two levels."""

    def __init__(self, lengths: list[Tensor]):
        super().__init__(lengths)
        self.kept: dict = {}

    def attend(self, module, query, key, value, window, **options) -> Tensor:
        first, rest = zip(*(split(x, self) for x in (key, value)), strict=True)
        self.kept[module] = [x[0].transpose(0, 1) for x in first], [x.transpose(1, 2) for x in rest]
        return super().attend(module, query, key, value, window, **options)


def _nothing(key: Tensor, prompts: int) -> tuple[list[Tensor], list[Tensor]]:
    """The keys and values of prompts of one token."""
    _, groups, d = key.shape
    return [key.new_zeros(groups, 0, d)] * 2, [key.new_zeros(prompts, groups, 0, d)] * 2


@contextmanager
def weights_first(model):
    """Inside, a float32 product x W^T on a CPU is (W x^T)^T, of few rows up to four times faster: W is read as it lies.

    A layer whose forward somebody else has replaced, as accelerate's hooks do, is left alone.
    """
    layers = [
        m
        for m in model.modules()
        if type(m) is nn.Linear
        and m.weight.dtype == torch.float32
        and not m.weight.is_cuda
        and "forward" not in m.__dict__
    ]
    for layer in layers:
        layer.forward = partial(_product, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _product(layer: nn.Linear, x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        return F.linear(x, layer.weight, layer.bias)
    made = torch.mm(layer.weight, x.flatten(0, -2).t()).t().unflatten(0, x.shape[:-1])
    return made if layer.bias is None else made + layer.bias


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
