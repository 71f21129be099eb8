"""After training: is the principle in the text, and can the untrained model still read it there? (docs/method.md, eq. 14)

Every model answers held-out questions under the principles of its set. The completions are scored under the model itself
and under the untrained model. Where the policy's own bound rises while the untrained reader's falls, the policy has a private code. The
untrained model answers once, under the principles of all sets, and every arm is compared with the part that is its own.
"""

import math
import sys
from functools import partial

import numpy as np
import pandas as pd

from enigma import stages
from enigma.data.questions import load_questions
from enigma.method import sufficiency as si
from enigma.method.complexity import matched_bits
from enigma.method.rewards import graded_format, strict_format
from enigma.method.stats import Interval, mean_interval
from enigma.profile import BASE, run_name
from enigma.record.cache import Piece, Store
from enigma.stages import select, train

NAME = "02_train"
GREEDY = 3  # questions that each model also answers greedily, without a principle, to be read
CAPTIONS = {
    "legibility": "Held-out questions, answered by each model under a set's principles: information that a completion "
    "carries about its principle (nats) for the model itself and for the untrained model as reader, perplexity under the "
    "untrained model, and format rewards. 95 % intervals over questions.",
    "legibility_items": "The rows of table legibility question by question, for paired comparisons. own, untrained: "
    "information in nats; nll: negative log-likelihood per token under the untrained model.",
    "complexity": "Does a model repeat itself? Lempel-Ziv bits per character of its held-out completions, mean over questions "
    "with a 95 % interval; base: of the untrained model's under the same principles, cut to the same length; difference: paired "
    "by question. A collapse shows as a difference far below zero.",
    "transcripts": "What each model writes. sampled: temperature 1, under a principle, as in training; greedy: the likeliest "
    "token each time, without a principle. A small model rambles when sampled, because at every step some of the "
    "probability lies on odd tokens; its greedy text is tidier.",
}


def pieces(profile, store: Store) -> list[Piece]:
    """One piece for the untrained model under all sets, one for each run under its own."""
    from enigma.llm.loading import fingerprint

    spec, sets = profile.sufficiency, select.chosen_sets(profile, store)
    everything = {p.name: p.text for name in profile.sets() for p in sets[name]}
    common = {
        "model": fingerprint(profile.model, profile.seeds.initialisation),
        "prompts": profile.prompts.model_dump(),
        "questions": load_questions(profile.questions, "heldout", spec.heldout, profile.seeds.data),
        "samples": spec.samples,
        "max_tokens": profile.trainer.max_completion_length,
        "batch_size": spec.batch_size,
        "seed": profile.seeds.evaluation,
    }
    places = list(everything)
    own_sets = sorted([places.index(p.name) for p in sets[name]] for name in profile.sets())
    found = [Piece("legibility", BASE, {**common, "adapter": {}, "principles": everything, "sets": own_sets})]
    for arm, seed in profile.runs():
        mine = {p.name: p.text for p in sets[profile.arms[arm].set]}
        own = {"adapter": train.adapter_recipe(profile, store, arm, seed), "principles": mine, "sets": None}
        found.append(Piece("legibility", run_name(arm, seed), common | own))
    return found


def measure(profile, store: Store) -> dict:
    """The completions and scores of every model: {"sets": {...}, "models": [{"arm", "seed", ...}]}."""
    models = [(BASE, None), *profile.runs()]
    work = [
        (piece, partial(_carried, profile, store, piece.ingredients, *one))
        for piece, one in zip(pieces(profile, store), models, strict=True)
    ]
    rows = stages.made(store.rows, store, work, "legibility", "model")
    found = [{"arm": arm, "seed": seed, **one} for (arm, seed), one in zip(models, rows, strict=True)]
    sets = {name: [p.name for p in members] for name, members in select.chosen_sets(profile, store).items()}
    return {"sets": sets, "models": found}


def _carried(profile, store: Store, recipe: dict, arm: str, seed: int | None) -> dict:
    """Sample one model on held-out questions and score the completions under itself and under the untrained model."""
    from enigma.llm import prompts
    from enigma.llm.loading import load_policy
    from enigma.llm.matched import sample_and_score
    from enigma.llm.states import greedy_completions

    adapter = None if seed is None else train.adapter(profile, store, arm, seed)
    model, tokenizer = load_policy(profile.model, adapter, profile.seeds.initialisation)
    options = {key: recipe[key] for key in ("samples", "max_tokens", "batch_size", "seed", "sets")}
    texts, style = list(recipe["principles"].values()), recipe["prompts"]
    untrained = None if adapter is None else model.disable_adapter
    rows = sample_and_score(
        model, tokenizer, recipe["questions"], texts, style, untrained=untrained, **options
    )
    asked = recipe["questions"][:GREEDY]
    encoded = [prompts.encode(tokenizer, prompts.messages(q, None, **style)) for q in asked]
    greedy = greedy_completions(model, tokenizer, encoded, recipe["max_tokens"], recipe["batch_size"])
    written = tokenizer.batch_decode(greedy, skip_special_tokens=True)
    return {
        "principles": list(recipe["principles"]),
        "asked": recipe["questions"],
        "questions": [{key: row[key] for key in row if key not in ("wordings", "reasoning")} for row in rows],
        "greedy": written,
    }


# ---- tables --------------------------------------------------------------------------------------------------------


def tables(profile, raw: dict, earlier) -> dict[str, pd.DataFrame]:
    """The tables of `CAPTIONS`. The untrained model has one row for each set."""
    base = raw["models"][0]
    rows, items = [], []
    for name in profile.sets():
        members = [base["principles"].index(p) for p in raw["sets"][name]]
        head = {"arm": BASE, "seed": None, "set": name}
        _add(rows, items, head, _restricted(base["questions"], members), profile)
    for model in raw["models"][1:]:
        head = {"arm": model["arm"], "seed": model["seed"], "set": profile.arms[model["arm"]].set}
        _add(rows, items, head, model["questions"], profile)
    tables = {"legibility": pd.DataFrame(rows), "legibility_items": pd.concat(items, ignore_index=True)}
    tables = {name: table.astype({"seed": "Int64"}) for name, table in tables.items()}
    tables["complexity"] = _complexity(raw, profile).astype({"seed": "Int64"})
    return tables | {"transcripts": _transcripts(raw["models"]).astype({"seed": "Int64"})}


def _complexity(raw: dict, profile) -> pd.DataFrame:
    """One row for each model: bits, base and difference, each with its interval over questions."""
    base, rows = raw["models"][0], []
    for model in raw["models"]:
        name = profile.arms[model["arm"]].set if model["arm"] != BASE else None
        members = [base["principles"].index(p) for p in (raw["sets"][name] if name else base["principles"])]
        untrained = _restricted(base["questions"], members)
        both = zip(model["questions"], untrained, strict=True)
        own, other = np.array([matched_bits(one["texts"], two["texts"]) for one, two in both]).T
        row = {"arm": model["arm"], "seed": model["seed"], "questions": len(own)}
        for column, values in {"bits": own, "base": other, "difference": own - other}.items():
            found = mean_interval(values, **select.boot(profile))
            row |= {column: found.value, f"{column}_low": found.low, f"{column}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _restricted(questions: list[dict], members: list[int]) -> list[dict]:
    """The part of every question that was written under, and is read among, `members`."""
    kept = []
    for row in questions:
        rows = [i for i, k in enumerate(row["source"]) if k in members]
        part = {key: [row[key][i] for i in rows] for key in ("tokens", "texts")}
        part["source"] = [members.index(row["source"][i]) for i in rows]
        part["completion"] = [[row["completion"][i][k] for k in members] for i in rows]
        kept.append(part)
    return kept


def _add(rows: list, items: list, head: dict, questions: list[dict], profile) -> None:
    """One row of `legibility`, and the rows of its questions."""
    own = [row["completion"] for row in questions]
    read = [row.get("untrained", row["completion"]) for row in questions]
    k = len(own[0][0])
    everything = [range(k)]
    informed = {
        "own": si.set_information(own, everything),
        "untrained": si.set_information(own, everything, read),
    }
    surprise = np.array(
        [-np.sum(np.array(s)[np.arange(len(r["source"])), r["source"]]) for s, r in zip(read, questions)]
    )
    tokens = np.array([sum(row["tokens"]) for row in questions])
    per_question = {name: (found.information / found.weight)[0] for name, found in informed.items()}
    graded = [np.mean([graded_format(text) for text in row["texts"]]) for row in questions]
    strict = [np.mean([strict_format(text) for text in row["texts"]]) for row in questions]
    columns = per_question | {"nll": surprise / tokens, "graded": graded, "strict": strict}
    frame = pd.DataFrame({"question": range(len(questions)), **columns})
    items.append(pd.DataFrame(head, index=frame.index).join(frame))
    boot = select.boot(profile)
    found = {
        # The policy's own bound is an information; another reader's may fall below zero.
        "row_bound": mean_interval(per_question["own"], support=(0, math.log(k)), **boot),
        "row_bound_base_critic": mean_interval(
            per_question["untrained"], support=(-np.inf, math.log(k)), **boot
        ),
        "perplexity_base": Interval(*np.exp(mean_interval(surprise / tokens, **boot))),
    }
    row = head | {
        "k": k,
        "questions": len(questions),
        "completions": sum(len(r["source"]) for r in questions),
    }
    for name, interval in found.items():
        row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    rows.append(row | {"reward_graded": np.mean(graded), "reward_strict": np.mean(strict)})


def _transcripts(models: list[dict]) -> pd.DataFrame:
    rows = []
    for model in models:
        for question, asked, greedy in zip(model["questions"], model["asked"], model["greedy"], strict=False):
            principle = model["principles"][question["source"][0]]
            head = {"arm": model["arm"], "seed": model["seed"], "question": asked, "principle": principle}
            rows.append(head | {"sampled": question["texts"][0], "greedy": greedy})
    return pd.DataFrame(rows)


def run(profile, results) -> dict[str, pd.DataFrame]:
    """Legibility of every model. Returns and writes the tables."""
    return stages.run(sys.modules[__name__], profile, results)
