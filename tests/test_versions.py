"""A kept piece is only as good as its code's version number: a change of code that could change rows must be noticed."""

import ast
import json

import pytest

from tests import versions


@pytest.mark.parametrize("kind", versions.VERSIONS)
def test_code_that_makes_rows_has_not_changed_unnoticed(kind):
    recorded, now = json.loads(versions.RECORDED.read_text(encoding="utf-8")), versions.current()
    made_by, before = sorted(versions.modules_of(kind)), recorded["modules"]
    changed = [name for name in made_by if before.get(name) != now["modules"][name]]
    if recorded["kinds"].get(kind) != now["kinds"][kind]:
        changed.append(f"stages.{kind}, or its version")
    assert not changed, (
        f"{', '.join(changed)} changed. If rows of {kind} would be other ones now, raise VERSIONS[{kind!r}] in "
        "enigma/record/cache.py; then, in any case, run `python -m tests.versions`"
    )


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("x = 1", "x = 1  # why", True),
        ('def f():\n    "A docstring."\n    return 1', "def f():\n    return 1", True),
        ('CAPTIONS = {"a": "b"}', 'CAPTIONS = {"a": "c"}', True),
        ("def f():\n    return a - b", "def f():\n    return b - a", False),
    ],
)
def test_only_code_counts(before, after, same):
    one, other = (versions._hash(ast.parse(text).body) for text in (before, after))
    assert (one == other) == same


def test_the_loss_and_the_reading_of_questions_count_for_training():
    code = versions.modules_of("train")
    assert {"llm.trainer", "method.infonce", "method.rewards", "data.questions", "llm.loading"} <= code
    assert "stages.claims" not in code
