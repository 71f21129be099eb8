"""Questions to ask: the built-in ones, the user's JSON lines, or a data set of the hub.

Every question has one role, so that what selects principles, what trains and what measures never overlap.
"""

import hashlib
import json
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from enigma.data.text import check_text, find_unsafe, normalise
from enigma.errors import InputError

ROLES = ("train", "select", "heldout")
MAX_CHARACTERS = 100_000
_BUILT_IN = Path(__file__).with_name("questions.jsonl")


def load_questions(spec, role: str, count: int, seed: int) -> list[str]:
    """`count` questions of one role, in an order that `seed` alone decides.

    `spec` is the profile's `questions` block (source, path, dataset, revision, column, split, rows, max_characters). Roles are
    disjoint for every seed: a file's `role` field decides, else a hash of the text (train 60 %, select 20 %,
    heldout 20 %). A smaller `count` gives a prefix of a larger one. For `train`, where `count` exceeds what there
    is, the questions repeat in epochs, each shuffled anew; `select` and `heldout` never repeat: InputError.
    Of a hub data set, `rows` rows drawn by `seed` are looked at, and unusable ones (empty, repeated, unsafe,
    too long) are passed over with a warning that counts them. Raises InputError for all other bad input.
    """
    if role not in ROLES:
        raise ValueError(f"role {role!r}; expected one of {', '.join(ROLES)}")
    if count < 1:
        raise ValueError(f"count {count}; expected at least 1")
    where, pairs = _SOURCES[spec.source](spec, seed)
    return _draw(_available(where, pairs, role, count), count, seed)


def check_questions(spec, counts: dict[str, int]) -> None:
    """InputError unless the questions can be read and `counts[role]` of each role are there.

    A hub's data set is not looked at: that would need the network.
    """
    if spec.source == "hub":
        return
    where, pairs = _SOURCES[spec.source](spec, seed=0)
    for role, count in counts.items():
        _available(where, pairs, role, count)


def count_questions(spec, role: str, seed: int = 0) -> int:
    """How many questions of a role there are. Raises InputError as `load_questions` does."""
    return sum(its_role == role for _, its_role in _SOURCES[spec.source](spec, seed)[1])


def _available(where: str, pairs: list[tuple[str, str]], role: str, count: int) -> list[str]:
    """All questions of a role. InputError where `count` are asked for and cannot be had."""
    available = [question for question, its_role in pairs if its_role == role]
    wanted = 1 if role == "train" else count  # training repeats them
    if len(available) < wanted:
        raise InputError(
            f"{where}: found {len(available)} questions of role {role}; expected at least {wanted}; "
            "add questions or lower the number in the profile"
        )
    return available


def _draw(questions: list[str], count: int, seed: int) -> list[str]:
    generator, drawn = random.Random(seed), []
    while len(drawn) < count:
        drawn += generator.sample(questions, len(questions))
    return drawn[:count]


def _built_in(spec, seed: int) -> tuple[str, list[tuple[str, str]]]:
    return "built-in questions", _read_file(_BUILT_IN)


def _jsonl(spec, seed: int) -> tuple[str, list[tuple[str, str]]]:
    if not spec.path:
        raise InputError("questions.path: missing; expected the path of a JSON lines file; add it")
    return str(spec.path), _read_file(Path(spec.path))


def _hub(spec, seed: int) -> tuple[str, list[tuple[str, str]]]:
    where = f"data set {spec.dataset}"
    texts = [(text or "").strip() for text in _hub_column(spec, seed, where)]
    kept, passed_over = {}, Counter()
    for text in texts:
        reason = _unusable(text, spec.max_characters or MAX_CHARACTERS) or (
            "repeated" if normalise(text) in kept else None
        )
        if reason:
            passed_over[reason] += 1
        else:
            kept[normalise(text)] = text
    if passed_over:
        counts = ", ".join(f"{number} {reason}" for reason, number in sorted(passed_over.items()))
        warnings.warn(f"{where}: of {len(texts)} rows passed over: {counts}", stacklevel=3)
    return where, [(text, _role_of(text)) for text in kept.values()]


_SOURCES = {"builtin": _built_in, "jsonl": _jsonl, "hub": _hub}


def _hub_column(spec, seed: int, where: str) -> list[str | None]:
    if not re.fullmatch(r"[0-9a-f]{40}", spec.revision or ""):
        raise InputError(
            f"{where}: questions.revision: found {spec.revision!a:.60}; expected a commit hash (40 hex); pin one"
        )
    try:
        if spec.path:
            known, count, read = _hub_records(spec)
        else:
            from datasets import load_dataset

            table = load_dataset(spec.dataset, split=spec.split or "train", revision=spec.revision)
            known, count = table.column_names, len(table)

            def read(rows, column):
                return list(table.select(rows)[column])
    except Exception as error:  # the library lets errors of many packages through
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(
            f"{where}: cannot be loaded ({reason:.300}); expected a data set of the hub; check name, split and network, "
            "and for a gated one accept its terms and run `hf auth login`"
        ) from error
    column = spec.column or "question"
    if column not in known:
        raise InputError(
            f"{where}: found no column {column!r}; expected one of {', '.join(known)}; set questions.column"
        )
    rows = count if spec.rows is None else spec.rows
    if rows > count:
        raise InputError(f"{where}: questions.rows: found {rows}; expected at most {count}; lower it")
    values = read(sorted(random.Random(seed).sample(range(count), rows)), column)
    if wrong := [value for value in values if not isinstance(value, str | None)]:
        kind = type(wrong[0]).__name__
        raise InputError(f"{where}: column {column!r}: found {kind}; expected text; set questions.column")
    return values


def _hub_records(spec) -> tuple[list[str], int, Callable[[list[int], str], list]]:
    """Columns, number of rows and a reader of one JSON file of a data set, a list or a mapping from id to record.

    For data sets that hold files and a loading script: the script is never run. CoT-Collection's 1.8 million records
    are read whole, and only the rows that are asked for are looked at.
    """
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(spec.dataset, spec.path, repo_type="dataset", revision=spec.revision)
    with open(path, encoding="utf-8") as file:
        records = json.load(file)
    records = list(records.values()) if isinstance(records, dict) else records
    return list(records[0]), len(records), lambda rows, column: [records[i].get(column) for i in rows]


def _read_file(path: Path) -> list[tuple[str, str]]:
    """(question, role) of every line. Raises InputError with file and line."""
    pairs: list[tuple[str, str | None]] = []
    seen: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path}: line {number}"
        question, role = _record(line, where)
        first = seen.setdefault(normalise(question), number)
        if first != number:
            raise InputError(
                f"{where}: the same question as line {first}; expected every question once; remove one"
            )
        if pairs and (role is None) != (pairs[0][1] is None):
            raise InputError(
                f'{where}: "role" is given for some lines only; expected it on all lines or on none'
            )
        pairs.append((question, role))
    if not pairs:
        raise InputError(f'{path}: found no questions; expected lines like {{"question": "..."}}; add some')
    return [(question, role or _role_of(question)) for question, role in pairs]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. No more than one line of the allowed length is ever held."""
    limit = 4 * MAX_CHARACTERS  # bytes: UTF-8 takes up to four for a character
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(limit + 2), b""), start=1):
                where = f"{path}: line {number}"
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    if len(raw) <= limit:
                        reason = f"byte {error.start} is not UTF-8; expected UTF-8; save it as that"
                        raise InputError(f"{where}: {reason}") from error
                    line = " " * (MAX_CHARACTERS + 1)  # cut within a character: too long all the same
                if len(line.rstrip("\r\n")) > MAX_CHARACTERS:
                    raise InputError(
                        f"{where}: too long; expected at most {MAX_CHARACTERS} characters; split it"
                    )
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); expected a file; correct the path"
        ) from error


def _record(line: str, where: str) -> tuple[str, str | None]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", type(error).__name__)
        raise InputError(
            f"{where}: broken JSON ({reason}); expected an object on one line; correct it"
        ) from error
    if not isinstance(record, dict):
        raise InputError(
            f'{where}: found {type(record).__name__}; expected an object with "question"; correct the line'
        )
    question, role = record.get("question"), record.get("role")
    if not isinstance(question, str) or not question.strip():
        raise InputError(
            f'{where}: "question" is missing, empty or not text; expected a question; fill it in'
        )
    if "role" in record and role not in ROLES:
        found = f"{role!a:.60}"
        raise InputError(
            f'{where}: "role" is {found}; expected one of {", ".join(ROLES)}; correct or remove it'
        )
    return check_text(question, where).strip(), role


def _unusable(text: str, longest: int) -> str | None:
    if not text:
        return "empty"
    if len(text) > longest:
        return "too long"
    return "unsafe" if find_unsafe(text) else None


def _role_of(question: str) -> str:
    """The role by a hash of the text alone: the same for every seed, file order and subset."""
    bucket = int.from_bytes(hashlib.sha256(normalise(question).encode()).digest()[:8], "big") % 10
    return "train" if bucket < 6 else "select" if bucket < 8 else "heldout"
