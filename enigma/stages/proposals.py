"""Proposals for better texts of principles: edits, the model's own rewritings, and what makes a text unfit.

A text must be nearer to its seed than other principles are (`SIMILARITY`), and nearer than to its antithesis, by the
sentence encoder. That is a coarse judge of meaning; `enigma.stages.create` also reads the completions by the seed's own
wording. Source: our choice [D] (docs/method.md, section 11).
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from enigma.data.principles import MAX_CHARACTERS, Principle
from enigma.data.text import find_unsafe, normalise
from enigma.errors import InputError
from enigma.method.rewards import TAGS
from enigma.record.cache import Piece, Store

REWRITES = 4  # for each seed
REWRITE_TOKENS = 64
REWRITE_REQUEST = (
    "Rewrite this principle in one or two short sentences. Keep its meaning, and make it easy to see in someone's "
    "reasoning whether they follow it. Reply with the new principle alone.\n\nPrinciple: "
)
# Cosine to the seed. In the built-in pool 95 % of the pairs of different principles lie below 0.42; every edit by the
# operators lies above 0.55, and half of the independent paraphrases above 0.49. Chosen on these texts alone.
SIMILARITY = 0.5
APPENDED = (
    "Show it in one example.",
    "Name it in your first sentence.",
    "Say so explicitly in your reasoning.",
)


def concrete(text: str) -> list[str]:
    """The principle with a behaviour appended that a reader can observe, or with the request to show it in the reasoning."""
    return [f"{_sentence(text)} {more}" for more in APPENDED]


def imperative(text: str) -> list[str]:
    """The principle cut to what its first sentence asks for, without reason, purpose or condition before or after."""
    first = re.split(r"(?<=[.!?])\s", text)[0]
    asked = re.sub(r"^(?:when|if|before|after|while|where)\b[^,]*,\s*", "", first, flags=re.IGNORECASE)
    asked = re.split(r"[,;:]| (?:because|before|so that|when|even) ", asked)[0].strip()
    return [_sentence(asked[0].upper() + asked[1:])] if asked else []


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


@dataclass
class Proposal:
    """A text in the place of the seed principle of that name. `reason`: why it was refused, empty where it was not.

    `similarity`: cosine to its seed by the sentence encoder, NaN where another reason came first.
    """

    seed: str
    origin: str
    text: str
    similarity: float = math.nan
    reason: str = ""


def problem(text: str, taken: set[str]) -> str | None:
    """Why `text` cannot be a principle of a pool, or None. `taken` holds normal forms of the texts there are."""
    if not text:
        return "empty"
    if len(text) > MAX_CHARACTERS:
        return f"{len(text)} characters, more than {MAX_CHARACTERS}"
    if unsafe := find_unsafe(text):
        return unsafe
    if tag := next((tag for tag in TAGS if tag in normalise(text)), None):
        return f"format tag {tag}"
    if "\ufffd" in text:
        return "broken character"
    return "the same as another text" if normalise(text) in taken else None


def propose(seeds: list[Principle], rewrites: list, fits: Callable, near: Callable) -> list[Proposal]:
    """All operators' proposals for each seed, then the `rewrites` of it. No text occurs twice.

    `fits`: the tokenizer's own rules, a reason or None. `near`: of each text its cosine to the principle and to its
    antithesis (-1 without one). An unfit text stays in the list with its reason: it is shown, never measured.
    """
    taken = {normalise(text) for p in seeds for text in (p.text, p.antithesis) if text}
    found = []
    for principle, written in zip(seeds, rewrites, strict=True):
        made = [(edit.__name__, text) for edit in (concrete, imperative) for text in edit(principle.text)]
        mine = []
        for origin, text in [*made, *(("rewrite", text) for text in written)]:
            reason = problem(text, taken) or fits(text)
            taken.add(normalise(text))
            # What could mislead a reader of the table is escaped.
            shown = ascii(text)[1:-1] if find_unsafe(text) else text
            reason = f"refused: {reason}" if reason else ""
            mine.append(Proposal(principle.name, origin, shown, reason=reason))
        fit = [p for p in mine if not p.reason]
        for proposal, (own, opposite) in zip(fit, near(principle, [p.text for p in fit]), strict=True):
            proposal.similarity = own
            if own < SIMILARITY:
                proposal.reason = f"refused: similarity to its seed below {SIMILARITY:g}"
            elif own <= opposite:
                proposal.reason = "refused: as near to the antithesis as to its seed"
        found += mine
    return found


def make(profile, store: Store, seeds: list[Principle], load: Callable) -> tuple[list[Proposal], list[Piece]]:
    """The proposals for `seeds`, and the pieces that they were made from. `load`: (model, tokenizer), when needed."""
    from enigma.llm.fetch import ENCODER_SHA256
    from enigma.llm.loading import fingerprint, load_tokenizer
    from enigma.llm.rewards import SemanticReward

    encoder, tokenizer = functools.cache(lambda: SemanticReward(seeds)), load_tokenizer(profile.model)
    asked = {"request": REWRITE_REQUEST, "count": REWRITES, "max_tokens": REWRITE_TOKENS}
    asked["model"] = fingerprint(profile.model, profile.seeds.initialisation)
    used: list[Piece] = []

    def kept(name: str, ingredients: dict, rows: Callable[[], list]) -> list:
        used.append(Piece("create", name, ingredients))
        return store.rows(used[-1], rows)

    def rewritten(i: int, principle: Principle) -> list[str]:
        recipe = asked | {"text": principle.text, "seed": profile.seeds.sampling + i}
        return kept(f"rewrites-{principle.name}", recipe, lambda: _rewritten(*load(), recipe))

    def near(principle: Principle, texts: list[str]) -> list[list[float]]:
        recipe = {"encoder": ENCODER_SHA256, "texts": texts}
        recipe |= {"text": principle.text, "antithesis": principle.antithesis}
        return kept(f"meaning-{principle.name}", recipe, lambda: nearness(encoder(), principle, texts))

    rewrites = [rewritten(i, principle) for i, principle in enumerate(seeds)]
    return propose(seeds, rewrites, lambda text: _special(tokenizer, text), near), used


def cleaned(output: str) -> str:
    """A model's rewriting as a bare principle: its first line, without label, list mark, quotes or an unfinished end."""
    line = next((line.strip() for line in output.splitlines() if line.strip()), "")
    line = re.sub(r"^(?:[-*]|\d{1,2}[.)])\s+", "", line)
    line = re.sub(r"^[\w ]{0,30}principle\W{0,3}:\W{0,3}", "", line, flags=re.IGNORECASE)
    line = " ".join(line.split()).strip("\"'*` ")
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", line)]
    return line[: ends[-1]] if ends else line


def _rewritten(model, tokenizer, recipe: dict) -> list[str]:
    """Rewritings by the model itself, asked in chat at temperature 1."""
    from enigma.llm import prompts
    from enigma.llm.sampling import sample_completions

    asked = prompts.encode(tokenizer, [{"role": "user", "content": recipe["request"] + recipe["text"]}])
    count = recipe["count"]
    drawn = sample_completions(model, tokenizer, [asked] * count, recipe["max_tokens"], count, recipe["seed"])
    return [cleaned(text) for text in tokenizer.batch_decode(drawn, skip_special_tokens=True)]


def nearness(encoder, principle: Principle, texts: Sequence[str]) -> list[list[float]]:
    """Cosines (texts, 2) to the principle and to its antithesis, -1 where it has none."""
    if not texts:
        return []
    vectors = encoder.embed(texts)
    own = vectors @ encoder.targets[principle.name]
    opposite = vectors @ encoder.embed([principle.antithesis])[0] if principle.antithesis else own * 0 - 1
    return list(zip(own.tolist(), opposite.tolist(), strict=True))


def _special(tokenizer, text: str) -> str | None:
    from enigma.llm import prompts

    try:
        prompts.fit_template(tokenizer, [{"role": "user", "content": text}])
    except InputError:
        return "special token of this model"
    return None
