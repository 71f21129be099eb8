"""Further rewards of an arm, by name: GRPO that is paid for the principle itself, without ENIGMA's terms.

An arm of a profile names one under `reward`. It is added to the graded format reward with weight 1, so that such an arm
loses nothing that the others are paid for. Both are TRL reward functions: lists in, one number a completion out. They
have one name in TRL's log, `principle_reward`, because an arm has one of them.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from enigma.data.principles import Principle
from enigma.errors import InputError
from enigma.llm import prompts as chat
from enigma.llm.loading import load_encoder
from enigma.llm.matched_sets import own_scores
from enigma.method.rewards import TAGS


class Context(NamedTuple):
    """What a reward may need: the arm's principles, the tokenizer, placement and demonstration, the device, and a
    context with the untrained model."""

    principles: Sequence[Principle]
    tokenizer: object
    style: dict
    device: torch.device | str
    reference: Callable[[], AbstractContextManager]


REWARDS: dict[str, Callable[[Context], Callable]] = {}
ALLOW = "ENIGMA_ALLOW_CODE"  # set by --allow-code


def reward(name: str):
    """Register the decorated builder, Context -> TRL reward function, under a name that a profile can give."""

    def enter(make):
        REWARDS[name] = make
        return make

    return enter


def build(name: str, context: Context) -> Callable:
    """The reward function of a profile's `reward`: a registered name, or `module:function` of the user's own.

    Own code is imported only where the command line said --allow-code, because a profile may be somebody else's. It has
    TRL's signature: lists in, one number a completion out. Raises InputError as `check` does.
    """
    check(name)
    if name in REWARDS:
        return REWARDS[name](context)
    module, _, function = name.partition(":")
    found = getattr(importlib.import_module(module), function, None)
    if not callable(found):
        raise InputError(
            f"reward: {name}: found no function {function!r} in {module}; expected one; correct it"
        )
    found.__name__ = NAME
    return found


def check(name: str) -> None:
    """InputError unless `name` is a registered reward, or code of the user's that may run."""
    if name == "format" or name in REWARDS:
        return
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        known = ", ".join(["format", *REWARDS])
        raise InputError(
            f"reward: found {name!a:.80}; expected one of {known}, or module:function; correct it"
        )
    if os.environ.get(ALLOW) != "1":
        raise InputError(f"reward: {name} is code; expected a registered reward; add --allow-code to run it")


ENCODER_TOKENS = 256  # as the encoder was trained
NAME = "principle_reward"


class SemanticReward:
    """Cosine similarity of a completion and its principle in a small sentence encoder, in [-1, 1].

    The completion is compared without its format tags; one without any text earns 0. The principle alone is the target,
    not the question with it: the question is the same for all completions of a matched set, and would only add what
    they share. It pays for naming the principle as well as for following it. Source: our choice.
    """

    __name__ = NAME

    def __init__(self, principles: Sequence[Principle], device: torch.device | str = "cpu"):
        self.encoder, self.tokenizer = load_encoder(device)
        self.targets = dict(
            zip((p.name for p in principles), self.embed([p.text for p in principles]), strict=True)
        )

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (N, 384): the mean over a text's tokens, as the encoder was trained."""
        inputs = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=ENCODER_TOKENS, return_tensors="pt"
        )
        inputs = inputs.to(self.encoder.device)
        hidden = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"][:, :, None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def __call__(self, completions, principle, **kwargs) -> list[float]:
        texts = [_untagged(completion[0]["content"]) for completion in completions]
        targets = torch.stack([self.targets[name] for name in principle])
        similarity = (self.embed(texts) * targets).sum(-1).tolist()
        return [value if text else 0.0 for text, value in zip(texts, similarity, strict=True)]


class FollowingReward:
    """log p_0(y | x, c) - log p_0(y | x), mean over the completion's tokens: nats per token, any sign.

    The untrained model itself says how much more likely the principle makes the completion: SALMON's
    principle-following reward (arXiv 2310.05910) without a trained reward model. `reference` opens a context with the
    untrained model; `style` goes to `enigma.llm.prompts.messages`. Source: our choice.
    """

    __name__ = NAME

    def __init__(self, tokenizer, reference: Callable[[], AbstractContextManager], **style):
        self.tokenizer, self.reference, self.style = tokenizer, reference, style

    @torch.no_grad()
    def __call__(self, prompts, completion_ids, question, **kwargs) -> list[float]:
        without = [chat.messages(text, None, **self.style) for text in question]
        with self.reference() as model:
            told, untold = (self._mean_logps(model, some, completion_ids) for some in (prompts, without))
        return (told - untold).tolist()

    def _mean_logps(self, model, prompts, completion_ids) -> Tensor:
        """(N,) log-probability per token of each completion under its own prompt, 0 for an empty completion."""
        device = next(model.parameters()).device
        encoded = [torch.tensor(chat.encode(self.tokenizer, messages), device=device) for messages in prompts]
        completions = [torch.tensor(ids, dtype=torch.long, device=device) for ids in completion_ids]
        scores, cells = own_scores(model, encoded, completions, layers=(), entropy=False)
        return scores.logps[cells].sum(-1) / scores.mask[cells].sum(-1).clamp(min=1)


def _untagged(text: str | None) -> str:
    for tag in TAGS:
        text = (text or "").replace(tag, " ")
    return text.strip()


@reward("semantic")
def _semantic(context: Context) -> SemanticReward:
    return SemanticReward(context.principles, context.device)


@reward("following")
def _following(context: Context) -> FollowingReward:
    return FollowingReward(context.tokenizer, context.reference, **context.style)
