"""docs/method.md: every citation finds what it cites, every equation is computed somewhere, table 1 is the registry's."""

import inspect
import pkgutil
import re
from pathlib import Path

import pytest

from enigma.stages.claims import REGISTRY

ROOT = Path(__file__).resolve().parents[1]
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
NUMBERS = r"(\d+(?:(?:, | and | to )\d+)*)"
CITATIONS = {
    "equation": re.compile(rf"\b(?:eqs?\.|equations?)\s+{NUMBERS}"),
    "section": re.compile(rf"docs/method\.md, sections? {NUMBERS}"),
    "table": re.compile(rf"docs/method\.md, table {NUMBERS}"),
    "departure": re.compile(rf"departures? {NUMBERS}"),
}
THERE = {
    "equation": re.findall(r"\\tag\{(\d+)\}", METHOD),
    "section": re.findall(r"^## (\d+)\. ", METHOD, re.MULTILINE),
    "table": re.findall(r"^Table (\d+)\.", METHOD, re.MULTILINE),
    "departure": re.findall(r"^(\d+)\. \*\*", METHOD, re.MULTILINE),
}


def numbers(text: str) -> list[str]:
    """ "3 to 5, 10 and 15" -> 3, 4, 5, 10, 15."""
    found = []
    for part in re.split(r", | and ", text):
        first, *last = part.split(" to ")
        found += [str(n) for n in range(int(first), int(last[0] if last else first) + 1)]
    return found


CODE = [*(ROOT / "enigma").rglob("*.py"), *(ROOT / "notebooks").glob("*.py")]
# (file, kind, number) of every citation; a line's end is a space, comment signs are none.
CITED = [
    (path.name, kind, number)
    for path in (*CODE, *(ROOT / "docs").glob("*.md"), ROOT / "README.md")
    for kind, citation in CITATIONS.items()
    for match in citation.finditer(re.sub(r"\s*\n\s*(?:#\s*)?", " ", path.read_text(encoding="utf-8")))
    for number in numbers(match[1])
]


def test_every_citation_finds_what_it_cites():
    assert [each for each in CITED if each[2] not in THERE[each[1]]] == []


def test_numbers_run_from_one_without_a_gap_or_a_repeat():
    for kind, found in THERE.items():
        assert sorted(map(int, found)) == list(range(1, len(found) + 1)), kind


def test_table_2_names_for_every_equation_a_function_that_cites_it():
    rows = re.findall(r"^\| ([\d, ]+) \| [^|]+ \| `(enigma\.[\w.]+)` \|$", METHOD, re.MULTILINE)
    for listed, name in rows:
        found = pkgutil.resolve_name(name)
        text = re.sub(r"\s+", " ", inspect.getdoc(found) + (inspect.getmodule(found).__doc__ or ""))
        named = {n for match in CITATIONS["equation"].finditer(text) for n in numbers(match[1])}
        assert set(listed.split(", ")) <= named, (name, listed)
    assert sorted(n for listed, _ in rows for n in listed.split(", ")) == sorted(THERE["equation"])


@pytest.mark.parametrize("claim", REGISTRY, ids=lambda claim: claim.id)
def test_table_1_has_the_claims_of_the_registry(claim):
    [row] = [line for line in METHOD.splitlines() if line.startswith(f"| {claim.id} |")]
    assert claim.source in row and claim.text.split(",")[0] in row


def test_nothing_cites_a_page_that_is_not_in_the_repository():
    for path in CODE:
        for page in re.findall(r"\bdocs/\w+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / page).is_file(), (path, page)
