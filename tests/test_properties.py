"""Any text whatever: the parsers accept it or say InputError in one line; the format reward never fails; a profile
survives being written and read."""

import copy
import json
import sys
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enigma.data.principles import Principle, load_pool
from enigma.data.questions import ROLES, check_questions, load_questions
from enigma.data.text import find_unsafe
from enigma.errors import InputError
from enigma.method import rewards
from enigma.profile import BUILTIN, Profile, load_profile
from enigma.record.cells import escape_cell, unescape_cell
from enigma.tasks.catalogue import read_rows

TEXTS = {
    name: (BUILTIN / f"{name}.yaml").read_text(encoding="utf-8") for name in ("smoke", "cpu", "gpu", "paper")
}
SMOKE = yaml.safe_load(TEXTS["smoke"].replace("3e-4", "0.0003"))
MANY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def nested(leaves, keys):
    """Lists and dictionaries of these leaves, one in the other."""
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    )


# Whatever JSON and YAML can hold, and text in their own letters.
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
jsonable = nested(plain, st.text(max_size=8))
scalars = plain | st.dates() | st.binary(max_size=5)
anything = nested(scalars, scalars)
MARKS = [
    *("!!int ", "!!bool ", "!!timestamp ", "!!map ", "!!binary ", "!!float ", "''", "[", "]", "{"),
    *("}", "&a ", "*a", "<<", ": ", "\n", "- ", "|", "2024-13-45", "name", "principles", '"\\ud800"'),
    *('"question"', ",", "~", "0o9", "\u202e", "\x00"),
]
lettered = st.lists(st.sampled_from(MARKS), max_size=8).map("".join)
garbled = st.binary(max_size=200) | lettered


@pytest.fixture
def file(tmp_path):
    def write(content, name="file.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    return write


def read_or_refused(read, path):
    """What `read` makes of a file, or None where it refuses in one line that names the file."""
    try:
        return read(path)
    except InputError as error:
        message = str(error)
        assert message.startswith(f"{path}") and "\n" not in message and message.isprintable()
        assert "; " in message and len(message) < 2000
        return None


# ---- parsers -------------------------------------------------------------------------------------------------------


def paths(value, prefix=()):
    """The path of every value within a profile."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield (*prefix, key)
        yield from paths(inner, (*prefix, key))


@MANY
@given(garbled | anything.map(lambda value: yaml.dump(value)))
def test_any_file_as_a_profile(file, content):
    assert read_or_refused(load_profile, file(content)) is None


@MANY
@given(st.sampled_from(sorted(paths(SMOKE))), anything)
def test_any_value_anywhere_in_a_profile(file, place, value):
    data = copy.deepcopy(SMOKE)
    section = data
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    loaded = read_or_refused(load_profile, file(yaml.safe_dump(data)))
    assert loaded is None or isinstance(loaded, Profile)


@MANY
@given(garbled | anything.map(lambda value: yaml.dump({"principles": value})))
def test_any_file_as_principles(file, content):
    for principle in read_or_refused(load_pool, file(content)) or []:
        assert isinstance(principle, Principle) and find_unsafe(principle.text) is None


asked = st.fixed_dictionaries(
    {"question": st.text()}, optional={"role": st.sampled_from([*ROLES, "test", None])}
)
lines = st.lists((jsonable | asked).map(json.dumps), max_size=4).map("\n".join)


@MANY
@given(garbled | lines)
def test_any_file_as_questions(file, content):
    spec = SimpleNamespace(source="jsonl", path=str(file(content)))
    questions = read_or_refused(lambda _: load_questions(spec, "train", 3, 0), spec.path)
    assert questions is None or (len(questions) == 3 and not any(map(find_unsafe, questions)))
    checked = read_or_refused(lambda _: check_questions(spec, {"train": 1}) or True, spec.path)
    assert (checked is None) == (questions is None)


@MANY
@given(
    st.sampled_from([("gpqa_main_zeroshot", "x.csv"), ("gsm8k", "x.jsonl"), ("truthfulqa_mc1", "x.jsonl")]),
    st.binary(max_size=100) | st.text(max_size=100) | lines,
)
def test_any_file_as_evaluation_data(file, task, content):
    read_or_refused(lambda path: list(read_rows(path, task[0])), file(content, task[1]))


# ---- round trips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_profile_written_and_read_is_equal(name, file):
    profile = load_profile(name)
    again = load_profile(file(yaml.safe_dump(profile.model_dump(), sort_keys=False)))
    assert again.model_dump() == profile.model_dump()
    assert load_profile(file(profile.text)).hash == profile.hash


@settings(MANY, max_examples=30)
@given(
    st.integers(1, 10**9),
    st.floats(1e-9, 1e3),
    st.floats(0, 1e3),
    st.integers(0, 2**31 - 1),
    st.text(st.characters(codec="utf-8"), min_size=1),
)
def test_a_profile_with_any_numbers_and_description_survives(file, steps, rate, weight, seed, description):
    data = copy.deepcopy(SMOKE) | {"description": description}
    data["trainer"] |= {"max_steps": steps, "learning_rate": rate}
    data["arms"]["grpo"]["lambda_ot"], data["seeds"]["data"] = weight, seed
    profile = load_profile(file(yaml.safe_dump(data)))
    assert (profile.trainer.max_steps, profile.trainer.learning_rate) == (steps, rate)
    found = profile.arms["grpo"].lambda_ot, profile.seeds.data, profile.description
    assert found == (weight, seed, description)
    assert load_profile(file(yaml.safe_dump(profile.model_dump()))).model_dump() == profile.model_dump()


@given(st.text())
def test_any_cell_survives_and_no_spreadsheet_runs_it(text):
    cell = escape_cell(text)
    assert unescape_cell(cell) == text.replace("\r\n", "\n").replace("\r", "\n")
    assert not cell.startswith(("=", "@", "\t", "\r"))
    assert not cell.startswith(("+", "-")) or float(cell) is not None


# ---- the format reward ---------------------------------------------------------------------------------------------

PIECES = [
    *rewards.TAGS,
    *("a", " ", "\n", "\u200b", "\ud800", "\x00", "<", "</", "<reasoning", "answer>", "\u202e"),
]


def characters_read(function, text):
    """How many characters `function` looks at: each method of a text counts as long as the text that it is called on."""
    seen = 0

    def count(frame, event, argument):
        nonlocal seen
        if event == "c_call" and isinstance(argument.__self__, str):
            seen += len(argument.__self__)

    sys.setprofile(count)
    try:
        function(text)
    finally:
        sys.setprofile(None)
    return seen


ELEMENTS = [
    ("", ""),
    ("<reasoning>", "</reasoning><answer>a</answer>"),
    ("<reasoning>a</reasoning><answer>", "</answer>"),
]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join), st.sampled_from(ELEMENTS))
def test_the_rewards_work_is_linear_in_the_text(unit, around):
    """Counted, not timed, on repetitions of the pieces that matter."""
    for repeated in (10, 1000):
        text = around[0] + unit * repeated + around[1]
        for function in (rewards.graded_format, rewards.reasoning_span):
            assert characters_read(function, text) <= 16 * len(text)


def test_the_count_finds_a_quadratic_scan():
    def quadratic(text):
        while (at := text.find("<")) != -1:
            text = text[at + 1 :]

    assert characters_read(quadratic, "<" * 1000) > 16 * 1000
