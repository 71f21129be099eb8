"""Does an answer survive a change that should not matter? The items of two own tasks under perturbations.

The measure is the margin of the right option (`enigma.method.marks`): how far it falls from the unchanged prompt.
Source: our choice [D].
"""

import json
import random
from pathlib import Path

import pandas as pd

from enigma.method.stats import mean_interval

TASK, METRIC = "enigma_robustness", "margin"
ORIGINAL, WORST = "original", "worst case"
EVERY = 4  # one of so many items
SEED = 20261124
IRRELEVANT = (
    "My neighbour has painted his fence.",
    "The bus was five minutes late today.",
    "There are two pens on the table.",
    "It was a cloudy morning in the village.",
)


def _typos(item: dict, generator: random.Random) -> str:
    """Two neighbouring letters are swapped in most of the longer words."""
    words = item["question"].split()
    for i, word in enumerate(words):
        if len(word) > 4 and word.isalpha() and generator.random() < 0.6:
            at = generator.randrange(1, len(word) - 2)
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return f"Question: {' '.join(words)}\nAnswer:"


def _hint(item: dict, generator: random.Random) -> str:
    wrong = generator.choice(
        [choice for choice in item["choices"] if choice != item["choices"][item["gold"]]]
    )
    return f"Question: {item['question']}\nSomebody says: {wrong}\nAnswer:"


# Condition -> the prompt of an item.
CONDITIONS = {
    ORIGINAL: lambda item, _: f"Question: {item['question']}\nAnswer:",
    "other frame": lambda item, _: f"Q: {item['question']}\nA:",
    "typos": _typos,
    "irrelevant": lambda item, g: f"{g.choice(IRRELEVANT)}\nQuestion: {item['question']}\nAnswer:",
    "wrong hint": _hint,
}


def documents() -> list[dict]:
    """One document for each item and condition: item (its number), condition, prompt, choices, gold."""
    files = [Path(__file__).with_name(f"{name}.jsonl") for name in ("knowledge", "reasoning")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        {
            "item": number,
            "condition": condition,
            "prompt": make(item, random.Random(f"{SEED}/{condition}/{item['question']}")),
            "choices": item["choices"],
            "gold": item["gold"],
        }
        for number, item in enumerate(map(json.loads, lines[::EVERY]))
        for condition, make in CONDITIONS.items()
    ]


def example(item: int) -> str:
    """An item's prompt under every condition, one below the other, for reading."""
    shown = [document for document in documents() if document["item"] == item]
    return "\n\n".join(f"--- {document['condition']}\n{document['prompt']}" for document in shown)


def summary(items: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The table `robustness`: for each run and condition the margin, and how far it lies below the original's.

    `items`: rows of table benchmark_items; other tasks' rows are passed over. `margin`, `drop`: nats per character, means
    over items; low, high: 95 % interval of the drop over items. The row `worst case` takes each item's smallest margin.
    """
    chosen = items[(items["task"] == TASK) & (items["metric"] == METRIC)]
    rows = []
    for (arm, run_seed), run in chosen.groupby(["arm", "seed"], sort=False, dropna=False):
        table = run.pivot(index="item", columns="part", values="value")[list(CONDITIONS)].dropna()
        table[WORST] = table.min(axis=1)
        for condition in [*CONDITIONS, WORST]:
            drop = mean_interval((table[ORIGINAL] - table[condition]).to_numpy(), seed=seed)
            rows.append([arm, run_seed, condition, table[condition].mean(), *drop, len(table)])
    columns = ["arm", "seed", "condition", "margin", "drop", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns).astype({"seed": "Int64"})


def worst(items: pd.DataFrame) -> pd.DataFrame:
    """Each item's margin in the worst case: arm, seed, item, value."""
    chosen = items[(items["task"] == TASK) & (items["metric"] == METRIC)]
    return chosen.groupby(["arm", "seed", "item"], sort=False, dropna=False)["value"].min().reset_index()
