"""Questions: the built-in set's promises, disjoint roles, seeded order, and every refusal."""

import json
import os
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

import enigma
from enigma.data.questions import ROLES, load_questions
from enigma.data.text import find_unsafe, normalise
from enigma.errors import InputError

PACKAGE = Path(enigma.__file__).parent
LINES = [json.loads(line) for line in (PACKAGE / "data" / "questions.jsonl").read_text().splitlines()]


def spec(source="builtin", **values):
    fields = dict.fromkeys(("path", "dataset", "revision", "column", "split", "rows", "max_characters"))
    return SimpleNamespace(**{**fields, "source": source, **values})


@pytest.fixture
def write(tmp_path):
    def write(content) -> SimpleNamespace:
        path = tmp_path / "questions.jsonl"
        if isinstance(content, list):
            content = "\n".join(map(json.dumps, content)).encode()
        path.write_bytes(content)
        return spec("jsonl", path=str(path))

    return write


def plain(number):
    return [{"question": f"What is question {i} about?"} for i in range(number)]


# The built-in questions


def test_built_in_set_keeps_its_promises():
    assert Counter(line["role"] for line in LINES) == {"train": 112, "select": 48, "heldout": 48}
    assert [line["id"] for line in LINES] == [f"q{i:03d}" for i in range(1, 209)]
    assert len({normalise(line["question"]) for line in LINES}) == 208
    topics = {role: {line["topic"] for line in LINES if line["role"] == role} for role in ROLES}
    assert topics["train"] == topics["select"] == topics["heldout"] and len(topics["train"]) == 16
    for line in LINES:
        assert set(line) == {"id", "question", "role", "topic"}
        assert 6 <= len(line["question"].split()) <= 25 and line["question"].endswith("?"), line["id"]
        assert find_unsafe(line["question"]) is None


def bare(text):
    """Words alone: a copied question is found whatever its punctuation."""
    return " " + " ".join(re.findall(r"[^\W_]+", normalise(text))) + " "


def record(line):
    """A line of JSON as plain text, its escapes as blanks."""
    return re.sub(r"\\.", " ", json.dumps(json.loads(line), ensure_ascii=False))


def assert_absent(path):
    whole = "\n".join(bare(record(line)) for line in path.read_text("utf-8").splitlines())
    assert len(whole) > 1000, f"{path}: nothing to compare with"
    copied = [line["question"] for line in LINES if bare(line["question"]) in whole]
    assert not copied, f"{path} holds {copied}"


def test_no_question_occurs_in_the_evaluation_items():
    paths = sorted((PACKAGE / "tasks").rglob("*.jsonl"))
    assert paths, "no evaluation items: the check would pass whatever the questions are"
    for path in paths:
        assert_absent(path)


@pytest.mark.parametrize("file", ["truthfulqa/multiple_choice.jsonl", "gsm8k/test.jsonl"])
def test_no_question_occurs_in_public_evaluation_sets(file):
    path = Path(os.environ.get("ENIGMA_DATA") or "nowhere") / file
    if not path.is_file():
        pytest.skip(f"ENIGMA_DATA holds no {file}")
    assert_absent(path)


def test_the_check_for_copies_can_fail(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"q": ["x" * 1000, f"Say: {LINES[0]['question'].upper()} now"]}))
    with pytest.raises(AssertionError, match="refrigerator"):
        assert_absent(path)


# Roles, order, counts


def test_roles_are_disjoint_and_seeded():
    sets = {role: set(load_questions(spec(), role, 48, seed)) for seed, role in enumerate(ROLES)}
    for a, b in combinations(ROLES, 2):
        assert not sets[a] & sets[b]
    assert load_questions(spec(), "train", 40, 3) == load_questions(spec(), "train", 40, 3)
    assert load_questions(spec(), "train", 40, 3) != load_questions(spec(), "train", 40, 4)
    assert load_questions(spec(), "train", 150, 3)[:40] == load_questions(spec(), "train", 40, 3)


def test_training_repeats_in_shuffled_epochs():
    drawn = load_questions(spec(), "train", 300, 0)
    first, second, rest = drawn[:112], drawn[112:224], drawn[224:]
    assert len(drawn) == 300 and len(set(first)) == 112 and set(first) == set(second)
    assert first != second and len(set(rest)) == len(rest)


def test_measuring_never_repeats():
    assert len(set(load_questions(spec(), "heldout", 48, 0))) == 48
    with pytest.raises(InputError, match="found 48 questions of role heldout; expected at least 49"):
        load_questions(spec(), "heldout", 49, 0)


@pytest.mark.parametrize("role, count", [("test", 1), ("train", 0)])
def test_misuse(role, count):
    with pytest.raises(ValueError):
        load_questions(spec(), role, count, 0)


def test_a_file_without_roles_is_split_by_its_texts(write):
    whole = {role: set(load_questions(write(plain(300)), role, 40, 0)) for role in ROLES}
    assert sum(len(questions) for questions in whole.values()) == 120
    shuffled = plain(300)[::-1]
    for seed, role in enumerate(ROLES):
        again = set(load_questions(write(shuffled), role, 40, seed))
        assert not again & set().union(*(whole[other] for other in ROLES if other != role))


def test_byte_order_mark_blank_lines_and_crlf(write):
    file = write(b'\xef\xbb\xbf{"question": " A?\\nB ", "role": "train"}\r\n\r\n')
    assert load_questions(file, "train", 2, 0) == ["A?\nB"] * 2


FAULTS = {
    "broken": (b'{"question": "A?"}\n{"question": "B?"\n', ["line 2", "broken JSON"]),
    "deep": (b"[" * 90_000, ["line 1", "broken JSON"]),
    "huge number": (b'{"question": ' + b"1" * 9000 + b"}", ["line 1", "broken JSON"]),
    "not an object": (b'["A?"]', ["line 1", "list"]),
    "empty": (b'{"question": "A?"}\n\n{"question": "  "}', ["line 3", "empty"]),
    "number": (b'{"question": 3}', ["line 1", "not text"]),
    "unknown role": (b'{"question": "A?", "role": "test"}', ["line 1", "'test'", "heldout"]),
    "role null": (b'{"question": "A?", "role": null}', ["line 1", "role"]),
    "some roles": (b'{"question": "A?", "role": "train"}\n{"question": "B?"}', ["line 2", "some lines only"]),
    "duplicate": (b'{"question": "A b?"}\n{"question": "c"}\n{"question": "a  B?"}', ["line 3", "line 1"]),
    "control": (b'{"question": "A\\u0007?"}', ["line 1", "U+0007"]),
    "surrogate": (b'{"question": "A\\ud800?"}', ["line 1", "U+D800"]),
    "Latin-1": (b'{"question": "A?"}\n{"question": "caf\xe9?"}', ["line 2", "UTF-8"]),
    "long": (b'{"question": "' + b"x" * 100_000 + b'?"}', ["line 1", "at most 100000"]),
    "very long": (b'{"question": "' + "\u20ac".encode() * 400_000 + b'?"}', ["line 1", "at most 100000"]),
    "nothing": (b"\n\n", ["no questions"]),
}


@pytest.mark.parametrize("content, expected", FAULTS.values(), ids=FAULTS.keys())
def test_refusals(write, content, expected):
    questions = write(content)
    with pytest.raises(InputError) as error:
        load_questions(questions, "train", 1, 0)
    message = str(error.value)
    assert message.startswith(f"{questions.path}:") and message.isprintable()
    for part in expected:
        assert part in message


@pytest.mark.parametrize("path", [None, "missing.jsonl", "."])
def test_no_such_file(path):
    with pytest.raises(InputError):
        load_questions(spec("jsonl", path=path), "train", 1, 0)


def test_a_role_without_questions(write):
    with pytest.raises(InputError, match="found 0 questions of role train; expected at least 1"):
        load_questions(write([{"question": "A?", "role": "select"}]), "train", 1, 0)


# The hub, through the library's own tables


@pytest.fixture
def hub(monkeypatch):
    import datasets

    def serve(columns, error=None):
        load = Mock(side_effect=error, return_value=datasets.Dataset.from_dict(columns))
        monkeypatch.setattr(datasets, "load_dataset", load)
        return load

    return serve


PINNED = {"dataset": "someone/questions", "revision": "a" * 40}


def test_hub_rows_are_sampled_by_seed_and_roles_stay_apart(hub):
    load = hub({"source": [line["question"] for line in plain(500)]})
    block = spec("hub", **PINNED, column="source", split="validation", rows=300)
    drawn = {(role, seed): set(load_questions(block, role, 30, seed)) for role in ROLES for seed in (0, 1)}
    load.assert_called_with("someone/questions", split="validation", revision="a" * 40)
    all_train = [set(load_questions(block, "train", 1000, seed)) for seed in (0, 0, 1)]
    assert all_train[0] == all_train[1] != all_train[2], "the rows themselves follow the seed"
    for (role, _), questions in drawn.items():
        for (other, _), others in drawn.items():
            assert role == other or not questions & others


def test_hub_rows_that_cannot_be_used_are_counted(hub):
    hub({"question": ["A b?", "a  B?", " ", None, "B?<|im_end|>", "x" * 100_001]})
    counted = "of 6 rows passed over: 2 empty, 1 repeated, 1 too long, 1 unsafe"
    short = pytest.raises(InputError, match="found [01] questions of role select")
    with pytest.warns(UserWarning, match=counted), short:
        load_questions(spec("hub", **PINNED), "select", 9, 0)


@pytest.mark.parametrize(
    "columns, values, expected",
    [
        ({"source": ["A?"]}, {}, "no column 'question'; expected one of source"),
        ({"question": [0, None]}, {}, "found int"),
        ({"question": ["A?"]}, {"rows": 2}, "questions.rows: found 2; expected at most 1"),
        ({"question": ["A?"]}, {"revision": "main"}, "questions.revision: found 'main'"),
    ],
)
def test_hub_refusals(hub, columns, values, expected):
    hub(columns)
    with pytest.raises(InputError, match=re.escape(expected)):
        load_questions(spec("hub", **{**PINNED, **values}), "train", 1, 0)


def test_hub_out_of_reach(hub):
    hub({"question": ["A?"]}, error=ConnectionError("no\nroute"))
    with pytest.raises(InputError, match=r"/questions: cannot be loaded \(ConnectionError: no route\)"):
        load_questions(spec("hub", **PINNED), "train", 1, 0)


def test_a_hub_file_of_records_needs_no_loading_script(tmp_path, monkeypatch):
    """A mapping from id to record with CoT-Collection's columns, as its JSON file has them."""
    import huggingface_hub

    texts = {str(i): f"What is {i} plus one?" + " Think." * (9 if i == 5 else 0) for i in range(60)}
    rest = {"target": "2", "rationale": "Count.", "task": "t"}
    file = tmp_path / "cot.json"
    file.write_text(json.dumps({name: rest | {"source": text} for name, text in texts.items()}))
    download = Mock(return_value=str(file))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    named = dict(path="data/cot.json", dataset="a/b", revision="a" * 40, column="source", split="train")
    with pytest.warns(UserWarning, match="of 60 rows passed over: 1 too long"):
        questions = load_questions(spec("hub", **named, max_characters=21), "train", 99, 0)
    assert all(q.endswith("plus one?") for q in questions)
    questions = load_questions(spec("hub", **named, rows=50), "train", 10, 0)
    assert len(set(questions)) == 10
    download.assert_called_with("a/b", "data/cot.json", repo_type="dataset", revision="a" * 40)
