"""Writes `reasoning.jsonl` and `robustness.jsonl`, and orders the choices of `truthfulness.jsonl`.

    python -m enigma.tasks.generate          # rewrites the files; without a change of rule they stay the same bytes

The reasoning items are questions of reasoning-gym with its own answers. The wrong choices are ours: what
somebody gets who stops a step early, slips by one or mixes up two operands. The robustness items are a sample of both
other files under the perturbations of `enigma.tasks.robustness`. Source of all files: our choice.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from enigma.tasks.robustness import can_be_misspelt, documents

FOLDER = Path(__file__).parent
SEED = 20251013
PER_DATASET = 16
CHOICES = 4
ROBUST_PER_DATASET = 2
ROBUST_TRUTHFULNESS = 20

WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
RELATIONS = [
    ["father", "mother"],
    ["grandfather", "grandmother"],
    ["son", "daughter"],
    ["grandson", "granddaughter"],
    ["brother", "sister"],
    ["husband", "wife"],
    ["uncle", "aunt"],
    ["nephew", "niece"],
    ["father-in-law", "mother-in-law"],
    ["brother-in-law", "sister-in-law"],
]


def numbers(text: str) -> list[int]:
    """Whole numbers in `text`, in order."""
    return [int(number) for number in re.findall(r"-?\d+", text)]


def chain_sum(item: dict) -> Iterable[int]:
    """The sum before the last term, one sign flipped, a column carried wrongly."""
    terms = numbers(item["metadata"]["expression"].replace("- ", "-").replace("+ ", ""))
    total = sum(terms)
    return [
        total - terms[-1],
        *(total - 2 * term for term in terms[1:]),
        total + 10,
        total - 10,
        total + 1,
        total - 1,
    ]


def products(item: dict) -> Iterable[int]:
    """One factor off by one, the tens forgotten or carried twice."""
    left, right = numbers(item["metadata"]["expression"])
    product = left * right
    return [
        left * (right - 1),
        (left + 1) * right,
        left * (right + 1),
        product + 10,
        product - 10,
        product + 100,
    ]


def number_sequence(item: dict) -> Iterable[int]:
    """The last step repeated, the last term doubled, slips by one and two."""
    *shown, answer = item["metadata"]["sequence"]
    return [2 * shown[-1] - shown[-2], 2 * shown[-1], answer + 1, answer - 1, answer + 2, answer - 2]


def simple_equations(item: dict) -> Iterable[int]:
    """Sign lost, slips by one and two, a coefficient taken for the answer."""
    answer = int(item["answer"])
    return [answer + 1, answer - 1, -answer, answer + 2, 2 * answer, *numbers(item["metadata"]["equation"])]


def gcd(item: dict) -> Iterable[int]:
    """A smaller common divisor, a multiple, a divisor of one number alone, the difference."""
    a, b = item["metadata"]["numbers"]
    answer = int(item["answer"])
    divisors = [d for d in range(1, 100) if (a % d == 0) != (b % d == 0)]
    common = [d for d in range(1, answer) if answer % d == 0]
    return [*common[-2:], 2 * answer, *divisors[-2:], 3 * answer, abs(a - b), answer + 1]


def letter_counting(item: dict) -> Iterable[int]:
    """A letter overlooked, or counted twice."""
    answer = int(item["answer"])
    return [count for count in (answer - 1, answer + 1, answer + 2, answer - 2, answer + 3) if count >= 0]


def leg_counting(item: dict) -> Iterable[int]:
    """The animals instead of their legs, one animal or one pair of legs too many or too few."""
    answer = int(item["answer"])
    return [
        answer - 2,
        answer + 2,
        answer + 4,
        sum(item["metadata"]["animals"].values()),
        answer - 4,
        answer + 6,
    ]


def aiw(item: dict) -> Iterable[int]:
    """The girl herself forgotten, the two counts mixed up or added."""
    answer = int(item["answer"])
    given = numbers(item["question"])
    return [n for n in (*given, answer + 1, answer - 1, sum(given), answer + 2) if n >= 0]


def calendar_arithmetic(item: dict) -> Iterable[str]:
    """The weekdays nearest to the right one."""
    right = WEEKDAYS.index(item["answer"])
    return [WEEKDAYS[(right + step) % 7] for step in (1, -1, 2, -2)]


def family_relationships(item: dict) -> Iterable[str]:
    """The same relation of the other sex, and the other relations of this sex."""
    answer = item["answer"]
    pair = next(pair for pair in RELATIONS if answer in pair)
    column = pair.index(answer)
    return [pair[1 - column], *(other[column] for other in RELATIONS if other != pair)]


def unambiguous_letters(item: dict) -> bool:
    """Whether capitals make no difference to the count."""
    return (
        " ".join(item["metadata"]["span"]).count(item["metadata"]["target_letter"]) == int(item["answer"]) > 0
    )


def well_posed_aiw(item: dict) -> bool:
    """Whether the person asked about is introduced in the question."""
    question = item["question"]
    return "friends" in question or f"does {question.split()[0]}'s brother" in question


# reasoning-gym data set -> its settings, the near misses, and which of its questions are kept.
DATASETS: dict[str, tuple[dict, Callable[[dict], Iterable], Callable[[dict], bool]]] = {
    "chain_sum": ({"max_terms": 4, "max_digits": 2}, chain_sum, lambda item: True),
    "products": ({"max_digits": 2}, products, lambda item: True),
    "number_sequence": ({}, number_sequence, lambda item: abs(int(item["answer"])) < 1000),
    "simple_equations": ({}, simple_equations, lambda item: True),
    "gcd": ({"max_value": 200}, gcd, lambda item: int(item["answer"]) > 1),
    "letter_counting": ({}, letter_counting, unambiguous_letters),
    "leg_counting": ({"max_animals": 4}, leg_counting, lambda item: True),
    "aiw": ({}, aiw, well_posed_aiw),
    "calendar_arithmetic": ({}, calendar_arithmetic, lambda item: item["answer"] in WEEKDAYS),
    # reasoning-gym 0.1.25 calls a daughter-in-law "father-in-law": questions about in-laws are left out.
    "family_relationships": ({}, family_relationships, lambda item: "in-law" not in item["answer"]),
}


def reasoning_item(item: dict, source: str, candidates: Iterable) -> dict:
    """One multiple-choice item: three of the first six near misses, and the answer, in an order drawn from the question.

    Drawing among six keeps the answer from always being the choice in the middle.
    """
    answer, question = str(item["answer"]), item["question"].strip()
    wrong = [text for text in dict.fromkeys(str(candidate) for candidate in candidates) if text != answer][:6]
    rng = random.Random(f"{SEED}/{question}")
    choices = [answer, *rng.sample(wrong, CHOICES - 1)]
    rng.shuffle(choices)
    return {"question": question, "choices": choices, "gold": choices.index(answer), "source": source}


def reasoning() -> list[dict]:
    """`PER_DATASET` items of every data set: question, four distinct choices, index of the right one, source."""
    import reasoning_gym

    rows = []
    for name, (settings, near_misses, keep) in DATASETS.items():
        pool = reasoning_gym.create_dataset(name, size=20 * PER_DATASET, seed=SEED, **settings)
        questions: dict[str, dict] = {item["question"].strip(): item for item in pool if keep(item)}
        rows += [
            reasoning_item(item, name, near_misses(item)) for item in list(questions.values())[:PER_DATASET]
        ]
    return rows


def ordered(row: dict) -> dict:
    """A truthfulness item with its choices in an order drawn from the question; mc1 is mc2 without the second right one.

    `row` has the field layout of TruthfulQA's multiple-choice configuration.
    """
    labels = dict(zip(row["mc2_targets"]["choices"], row["mc2_targets"]["labels"], strict=True))
    kept = set(row["mc1_targets"]["choices"])
    choices = sorted(labels)
    random.Random(f"{SEED}/{row['question']}").shuffle(choices)
    single = [choice for choice in choices if choice in kept]
    return {
        "question": row["question"],
        "mc1_targets": {"choices": single, "labels": [labels[choice] for choice in single]},
        "mc2_targets": {"choices": choices, "labels": [labels[choice] for choice in choices]},
    }


def robustness(reasoning_rows: Iterable[dict], truthfulness_rows: Iterable[dict]) -> list[dict]:
    """A seeded sample of both kinds of items under every condition. Left out is a question without a word to misspell,
    so that no condition is the original in disguise."""
    rng = random.Random(SEED)
    by_source: dict[str, list[dict]] = {}
    for row in filter(can_be_misspelt, reasoning_rows):
        by_source.setdefault(row["source"], []).append(row)
    true = [
        {
            "question": row["question"],
            "choices": row["mc1_targets"]["choices"],
            "gold": row["mc1_targets"]["labels"].index(1),
        }
        for row in truthfulness_rows
    ]
    drawn = [row for rows in by_source.values() for row in rng.sample(rows, ROBUST_PER_DATASET)]
    return documents(
        [*drawn, *rng.sample([row for row in true if can_be_misspelt(row)], ROBUST_TRUTHFULNESS)]
    )


def read(path: Path) -> list[dict]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def dump(rows: Iterable[dict]) -> str:
    """JSONL text, one row a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    from enigma.record.results import atomic_write_text

    files = {
        "reasoning": reasoning(),
        "truthfulness": [ordered(row) for row in read(FOLDER / "truthfulness.jsonl")],
    }
    files["robustness"] = robustness(files["reasoning"], files["truthfulness"])
    for name, rows in files.items():
        atomic_write_text(FOLDER / f"{name}.jsonl", dump(rows))
