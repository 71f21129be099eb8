"""The format reward against an independent statement of the format, and its bounds on any text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enigma.method.rewards import (
    TAGS,
    graded_format,
    graded_format_reward,
    reasoning_span,
    strict_format,
    strict_format_reward,
)

GOOD = "<reasoning>It rains.</reasoning>\n<answer>Take a coat.</answer>"

# Text made of the pieces that matter, so that well-formed completions are frequent.
pieces = st.sampled_from([*TAGS, "a", " ", "\n", "\u200b", "<", ">", "/", "reasoning", "</"])
texts = st.one_of(
    st.text(),
    st.lists(pieces, max_size=12).map("".join),
    st.tuples(pieces, pieces, pieces).map(
        lambda p: f"<reasoning>{p[0]}</reasoning>{p[1]}<answer>{p[2]}</answer>"
    ),
)


def independent_strict(text: str) -> bool:
    """The format as a pattern, on texts short enough for one."""
    match = re.fullmatch(r"\s*<reasoning>(.*)</reasoning>\s*<answer>(.*)</answer>\s*", text, re.DOTALL)
    if not match or any(tag in body for tag in TAGS for body in match.groups()):
        return False
    return all(any(c.isprintable() and not c.isspace() for c in body) for body in match.groups())


@settings(max_examples=300, deadline=None)
@given(texts, st.text(alphabet="ab <>/\n", max_size=20))
def test_any_text(text, tail):
    graded = graded_format(text)
    assert graded in [i / 8 for i in range(9)]
    assert strict_format(text) == (graded == 1.0) == independent_strict(text)
    start, end = reasoning_span(text)
    assert start == 0 <= end <= len(text)
    # A span that a tag ends does not depend on what follows.
    if text[:end].endswith(("</reasoning>", "<answer>")):
        assert reasoning_span(text[:end] + tail) == (0, end)


@pytest.mark.parametrize(
    "text, expected",
    [
        (GOOD, 1.0),
        (f"\n {GOOD}\n", 1.0),
        ("", 0.0),
        ("<reasoning>It rains.", 0.125),
        ("<reasoning>It rains.</reasoning>", 0.5),
        ("<reasoning>It rains.</reasoning>\n<answer>Take a coat.", 0.625),
        ("It rains.</reasoning>\n<answer>Take a coat.</answer>", 0.375),
        (f"Sure! {GOOD}", 0.75),
        (f"{GOOD} Anything else?", 0.75),
        ("<reasoning>It rains.</reasoning> so <answer>Take a coat.</answer>", 0.75),
        ("<reasoning> </reasoning><answer>Take a coat.</answer>", 0.75),
        ("<reasoning>It rains.</reasoning><answer>\n</answer>", 0.75),
        ("<reasoning>\u200b</reasoning><answer>\u2060</answer>", 0.5),
        ("<answer>Take a coat.</answer><reasoning>It rains.</reasoning>", 0.5),
        ("<reasoning>It <answer>rains.</reasoning>Coat.</answer>", 0.5),
        ("<Reasoning>It rains.</Reasoning><Answer>Coat.</Answer>", 0.0),
    ],
)
def test_part_marks(text, expected):
    assert graded_format(text) == expected


def test_repeating_never_pays():
    for tag in TAGS:
        assert graded_format(GOOD + tag) < graded_format(GOOD)
        assert graded_format(tag * 50) == 0.0
    assert graded_format(GOOD * 2) == 0.0


@pytest.mark.parametrize(
    "text, span",
    [
        (GOOD, "<reasoning>It rains.</reasoning>"),
        ("Well, <reasoning>a</reasoning>b</reasoning>", "Well, <reasoning>a</reasoning>"),
        ("<reasoning>a <answer>b</answer>", "<reasoning>a <answer>"),
        ("<answer>b</answer></reasoning>", "<answer>"),
        ("<reasoning>a", "<reasoning>a"),
    ],
)
def test_reasoning_span(text, span):
    start, end = reasoning_span(text)
    assert text[start:end] == span


def test_trl_convention():
    plain = [GOOD, "<reasoning>x", ""]
    chat = [[{"role": "assistant", "content": text}] for text in plain]
    assert graded_format_reward(completions=plain, prompts=["?"] * 3, answer=[1, 2, 3]) == [1.0, 0.125, 0.0]
    assert graded_format_reward(chat) == graded_format_reward(plain)
    assert strict_format_reward(chat) == strict_format_reward(plain) == [1.0, 0.0, 0.0]
    assert graded_format_reward([[], [{"role": "assistant", "content": None}]]) == [0.0, 0.0]
