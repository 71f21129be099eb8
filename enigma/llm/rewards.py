"""Further rewards of an arm, by name: GRPO that is paid for the principle itself, without ENIGMA's terms.

An arm of a profile names one under `reward`. It is added to the graded format reward with weight 1, so that such an arm
loses nothing that the others are paid for. Both are TRL reward functions: lists in, one number a completion out. They
have one name in TRL's log, `principle_reward`, because an arm has one of them.
"""

import importlib
import importlib.machinery
import importlib.util
import random
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from enigma.data.principles import Principle
from enigma.errors import InputError, check_code_allowed
from enigma.llm import prompts as chat
from enigma.llm.loading import load_encoder
from enigma.llm.matched_sets import own_scores
from enigma.llm.states import greedy_completions
from enigma.method.rewards import TAGS
from enigma.record.cache import digest
from enigma.record.files import file_hash


class Context(NamedTuple):
    """What a reward may need: the arm's principles, the tokenizer, placement and demonstration, the device, a context
    with the untrained model, the longest completion in tokens, and a seed for what it draws."""

    principles: Sequence[Principle]
    tokenizer: object
    style: dict
    device: torch.device | str
    reference: Callable[[], AbstractContextManager]
    max_tokens: int = 48
    seed: int = 0


REWARDS: dict[str, Callable[[Context], Callable]] = {}


def reward(name: str):
    """Register the decorated builder, Context -> TRL reward function, under a name that a profile can give."""

    def enter(make):
        REWARDS[name] = make
        return make

    return enter


def build(name: str, context: Context, folder: Path) -> Callable:
    """The reward function of a profile's `reward`: a registered name, or `module:function` of the user's own.

    Own code is imported only where the command line said --allow-code, because a profile may be somebody else's. It has
    TRL's signature: lists in, one number a completion out, and lies in `folder`, the profile's, or is installed. Raises
    InputError as `check` does.
    """
    check(name, folder)
    if name in REWARDS:
        return REWARDS[name](context)
    module, _, function = name.partition(":")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # the last: nothing there hides a library
    found = getattr(importlib.import_module(module), function, None)
    if not callable(found):
        raise _no_function(name)
    found.__name__ = NAME
    return found


def check(name: str, folder: Path) -> None:
    """InputError unless `name` is a registered reward, or code of the user's that is there and may run. Nothing is imported."""
    if name == "format" or name in REWARDS:
        return
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        known = ", ".join(["format", *REWARDS])
        raise InputError(
            f"reward: found {name!a:.80}; expected one of {known}, or module:function; correct it"
        )
    check_code_allowed(f"reward: {name}")
    files = _files(name, folder)
    if not files:
        raise InputError(
            f"reward: {name}: found no such module; expected a .py file in {folder}, or an installed one; correct it"
        )
    word = re.compile(rf"\b{name.partition(':')[2]}\b")
    if not any(word.search(path.read_text(encoding="utf-8", errors="replace")) for path in files):
        raise _no_function(name)


def code(name: str, folder: Path) -> str:
    """A digest of the user's code behind `module:function`, of a package all of it; nothing is imported. What the code
    imports from elsewhere is not in it."""
    files = _files(name, folder)
    if not files:
        return "not found"
    top = min(files, key=lambda path: len(path.parts)).parent
    return digest([[path.relative_to(top).as_posix(), file_hash(path)] for path in files])


def _files(name: str, folder: Path) -> list[Path]:
    """The files of a user's module that is installed or, where none is, lies in the folder; all of a package."""
    top = name.partition(":")[0].partition(".")[0]
    spec = importlib.util.find_spec(top) or importlib.machinery.PathFinder.find_spec(top, [str(folder)])
    if spec is None or not (spec.origin or "").endswith(".py"):
        return []
    origin = Path(spec.origin)
    return sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]


def _no_function(name: str) -> InputError:
    module, _, function = name.partition(":")
    return InputError(f"reward: {name}: found no function {function!r} in {module}; expected one; correct it")


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
        return self.similarities(completions, torch.stack([self.targets[name] for name in principle]))

    def similarities(self, completions, targets: Tensor) -> list[float]:
        """Cosine of each completion's text with its row of `targets` (N, 384); 0 without text."""
        texts = [_untagged(completion[0]["content"]) for completion in completions]
        similarity = (self.embed(texts) * targets).sum(-1).tolist()
        return [value if text else 0.0 for text, value in zip(texts, similarity, strict=True)]


class ReferenceReward(SemanticReward):
    """Cosine similarity of a completion and a reference explanation, in [-1, 1].

    The reference is what the untrained model writes greedily to the very same prompt, principle and all; it is written
    once for each prompt. Source: arXiv 2509.13081. Departures [D]: the paper's references are written by a stronger model;
    with the untrained one the reward pays for staying near what the model already says. Otherwise as `SemanticReward`.
    """

    def __init__(self, context: Context):
        super().__init__(context.principles, context.device)
        self.context = context
        self.written: dict[str, Tensor] = {}

    def __call__(self, completions, prompts, **kwargs) -> list[float]:
        keys = [repr(messages) for messages in prompts]
        new = {key: messages for key, messages in zip(keys, prompts) if key not in self.written}
        if new:
            texts = self.explanations(list(new.values()))
            self.written |= zip(new, self.embed([_untagged(text) or " " for text in texts]), strict=True)
        return self.similarities(completions, torch.stack([self.written[key] for key in keys]))

    def explanations(self, prompts: list) -> list[str]:
        """What the untrained model writes to each prompt (messages), token by token the likeliest."""
        tokenizer = self.context.tokenizer
        encoded = [chat.encode(tokenizer, messages) for messages in prompts]
        with self.context.reference() as model:
            written = greedy_completions(model, tokenizer, encoded, self.context.max_tokens, len(encoded))
        return tokenizer.batch_decode(written, skip_special_tokens=True)


class ShuffledReward:
    """A control: another reward's values, dealt out anew over the completions of a step, so that they mean nothing."""

    __name__ = NAME

    def __init__(self, reward: Callable, seed: int):
        self.reward, self.seed = reward, seed

    def __call__(self, trainer_state, **kwargs) -> list[float]:
        values = list(self.reward(trainer_state=trainer_state, **kwargs))
        random.Random(f"{self.seed} {trainer_state.global_step}").shuffle(values)
        return values


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


class SalmonReward(FollowingReward):
    """mean_s sign_s [log p_0(y | x, c_s) - log p_0(y | x)] over a random subset s of the arm's principles, nats per token.

    Each drawn principle is negated with probability 1/2, which turns its sign. One draw for each question and step, so
    that the completions of a matched set are judged alike. Source: SALMON, arXiv 2310.05910. Departures [D]: the judge is
    the untrained model, not a trained reward model; the negation is a sign and not a text; and it is drawn while the
    policy learns, where SALMON negates in the reward model's training. The policy is not told the sign, so the reward's
    mean over draws is zero for every completion: what the arm shows is what such noise costs.
    """

    def __init__(self, context: Context):
        super().__init__(context.tokenizer, context.reference, **context.style)
        self.principles, self.seed = list(context.principles), context.seed

    def drawn(self, question: str, step: int) -> list[tuple[Principle, int]]:
        """The principles that judge a question at a step, at least one, each with its sign."""
        generator = random.Random(f"{self.seed} {step} {question}")
        count = generator.randint(1, len(self.principles))
        return [(p, generator.choice((-1, 1))) for p in generator.sample(self.principles, count)]

    @torch.no_grad()
    def __call__(self, completion_ids, question, trainer_state, **kwargs) -> list[float]:
        asked, rows, signs = [], [], []
        for text in dict.fromkeys(question):
            mine = [i for i, other in enumerate(question) if other == text]
            judges = [(p.text, s) for p, s in self.drawn(text, trainer_state.global_step)]
            untold = (None, -sum(s for _, s in judges))
            for principle, sign in [*judges, untold]:
                asked += [chat.messages(text, principle, **self.style)] * len(mine)
                rows, signs = rows + mine, signs + [sign / len(judges)] * len(mine)
        with self.reference() as model:
            logps = self._mean_logps(model, asked, [completion_ids[i] for i in rows])
        found = [0.0] * len(question)
        for i, sign, value in zip(rows, signs, logps.tolist(), strict=True):
            found[i] += sign * value
        return found


def _untagged(text: str | None) -> str:
    for tag in TAGS:
        text = (text or "").replace(tag, " ")
    return text.strip()


reward("semantic")(lambda context: SemanticReward(context.principles, context.device))
reward("following")(lambda context: FollowingReward(context.tokenizer, context.reference, **context.style))
reward("semantic_reference")(ReferenceReward)
reward("semantic_reference_shuffled")(lambda context: ShuffledReward(ReferenceReward(context), context.seed))
reward("salmon")(SalmonReward)
