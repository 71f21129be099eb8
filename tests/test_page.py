"""report.html: whole, escaped, the same twice, and in a real browser without network, complaint or overflow."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess

import pandas as pd
import pytest
from browser import CHROMIUM, browser

from enigma import __main__ as cli
from enigma.errors import InputError
from enigma.profile import load_profile
from enigma.record import page
from enigma.record.results import Results, atomic_write_json
from enigma.stages import claims

HOSTILE = "<script>alert('1')</script><img src=x onerror=alert(2)> & \"quoted\" https://example.org/x.png"
QUESTIONS = [f"Question {i}?" for i in range(4)]
SETS = {"high": ["a", "b"], "low": ["c", "d"]}


@pytest.fixture(scope="module")
def profile():
    return load_profile("smoke")


@pytest.fixture
def results(profile, tmp_path):
    return filled(profile, tmp_path)


def filled(profile, root):
    """A small folder with claims, a figure, a long table, hostile text everywhere, and completions."""
    from matplotlib.figure import Figure

    results = Results(profile, root)
    results.write_yaml("selection", {name: {"principles": chosen} for name, chosen in SETS.items()}, HOSTILE)
    results.write_table(
        "training_groups", pd.DataFrame({"arm": "grpo", "step": range(500), "reward": [0.5] * 500}), "Steps."
    )
    results.write_table(
        "projection", pd.DataFrame({HOSTILE: [HOSTILE], **{f"column_{i}": [i] for i in range(20)}}), "Wide."
    )
    results.save_figure("fig1_sufficiency", Figure(), f"A caption. {HOSTILE}", inputs=["training_groups"])
    for run in ("base-high", "base-low", *(f"{arm}-s0" for arm in profile.arms)):
        texts = [f"{run} {q} {k} {i} {HOSTILE}" for q in QUESTIONS for k in range(2) for i in range(2)]
        atomic_write_json(
            results.runs / run / "legibility.json",
            {"source": [0, 0, 1, 1], "texts": texts, "questions": QUESTIONS},
        )
    claims.run(profile, results)
    results.write_record()
    return results


class Tags(html.parser.HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_what_was_written_by_others_stays_text(profile, results):
    text = page.render(profile, results)
    tags = Tags(text).found
    assert [tag for tag, _ in tags].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert all(
        attributes["src"].startswith("data:image/png;base64,") for tag, attributes in tags if tag == "img"
    )
    assert "&lt;script&gt;alert" in text


def test_no_address_but_the_papers(profile, results):
    addresses = [
        a[name]
        for _, a in Tags(page.render(profile, results)).found
        for name in ("src", "href", "action")
        if name in a
    ]
    outside = {address for address in addresses if re.match(r"(?!data:)(\w+:|//)", address)}
    assert outside == {"https://arxiv.org/abs/2510.11278"}
    for address in set(addresses) - outside - {page.NAME}:
        assert (
            address.startswith(("#", "data:"))
            or (results.folder / address).is_file()
            or address == "ro-crate-metadata.json"
        )


def test_it_can_be_read_by_all(profile, results):
    tags = Tags(page.render(profile, results)).found
    assert ("html", {"lang": "en"}) in tags
    assert any(a.get("name") == "viewport" for _, a in tags)
    assert all(a["alt"].startswith("A caption.") for tag, a in tags if tag == "img")
    names = [tag for tag, _ in tags]
    assert names.count("caption") == names.count("table") > 5
    assert all(a.get("scope") in ("col", "row") for tag, a in tags if tag == "th")
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["href"][1:] in ids for tag, a in tags if tag == "a" and a["href"].startswith("#"))


def test_claims_come_first_and_all_is_there(profile, results):
    text = page.render(profile, results)
    sections = re.findall(r'<section id="(\w+)">', text)
    assert sections == ["claims", "setting", "figures", "tables", "transcripts", "provenance"]
    for claim in claims.REGISTRY:
        assert f'<th scope="row">{claim.id}</th>' in text
    for item in results.catalogue():
        assert item.sidecar["sha256"] in text
    assert profile.hash in text and results.commit in text


def test_the_same_files_give_the_same_bytes(profile, results):
    first = page.write(profile, results).read_bytes()
    assert page.write(profile, Results(profile, results.root)).read_bytes() == first


def test_six_transcripts_by_the_rule(profile, results):
    import hashlib

    found = page.transcripts(profile, results)
    order = sorted(QUESTIONS, key=lambda question: hashlib.sha256(question.encode()).hexdigest())
    assert [(text.question, text.arm) for text in found] == [
        (q, arm) for q in order[:2] for arm in profile.arms
    ]
    for text in found:
        name = profile.arms[text.arm].set
        digests = {hashlib.sha256(f"{text.question} {p}".encode()).hexdigest(): p for p in SETS[name]}
        assert text.principle == digests[min(digests)]
        k = SETS[name].index(text.principle)
        assert text.before == f"base-{name} {text.question} {k} 0 {HOSTILE}"
        assert text.after == f"{text.arm}-s0 {text.question} {k} 0 {HOSTILE}"


def test_a_run_that_has_not_come_so_far_has_a_page_too(profile, tmp_path):
    results = Results(profile, tmp_path)
    results.write_record()
    text = page.render(profile, results)
    assert "Not judged yet." in text and "Nothing was sampled yet." in text


def test_without_a_record_it_says_what_is_missing(profile, tmp_path):
    with pytest.raises(InputError, match="run.json"):
        page.render(profile, Results(profile, tmp_path))


def test_report_command_writes_all_three(profile, results, capsys):
    assert cli.main(["report", "smoke", "--results", str(results.root)]) == 0
    printed = capsys.readouterr().out.split()
    assert [name.rsplit("/", 1)[1] for name in printed] == [
        "README.md",
        "report.html",
        "ro-crate-metadata.json",
    ]


def test_a_table_beyond_the_page_is_told(profile, results):
    results.write_table("training_groups", pd.DataFrame({"step": range(page.MOST + 5)}), "Steps.")
    assert f"The first {page.MOST} of {page.MOST + 5} rows." in page.render(profile, results)


# ---- in a browser --------------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium"
)


@pytest.fixture(scope="module")
def shown(profile, tmp_path_factory):
    """(page in a browser, path)."""
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    root = tmp_path_factory.mktemp("page")
    path = page.write(profile, filled(profile, root))
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab, path


@needs_browser
@pytest.mark.parametrize("width", [320, 375, 1280])
def test_it_fits_the_screen_and_asks_for_nothing(shown, width):
    tab, path = shown
    tab.events.clear()
    tab.open(path, width, mobile=width < 500)
    assert tab.run("document.documentElement.scrollWidth") <= width == tab.run("innerWidth")
    assert tab.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert tab.requests() == [path.as_uri()]
    assert tab.complaints() == []


@needs_browser
def test_the_browser_would_notice(shown, tmp_path):
    """The checks above can fail: a page with an outside image, an error and a wide line has all three."""
    tab, _ = shown
    path = tmp_path / "bad.html"
    path.write_text(
        "<body><p style='width:3000px'>x</p><img src='http://example.org/x.png'><script>nope()</script>"
    )
    tab.events.clear()
    tab.open(path, 375, mobile=False)
    assert tab.run("document.documentElement.scrollWidth") > 375
    assert "http://example.org/x.png" in tab.requests()
    assert len(tab.complaints()) >= 2


@needs_browser
def test_long_tables_are_sorted_by_a_press(shown):
    tab, path = shown
    tab.open(path, 1280)
    table = "document.querySelector('#table-training_groups + .scroll table')"
    first = f"{table}.tBodies[0].rows[0].cells[1].textContent"
    press = f"{table}.tHead.rows[0].cells[1].querySelector('button').click()"
    assert tab.run(first) == "0"
    tab.run(press)
    tab.run(press)
    assert tab.run(first) == "499"
    assert tab.run(f"{table}.tHead.rows[0].cells[1].getAttribute('aria-sort')") == "descending"


@needs_browser
def test_print_has_every_claim(shown, tmp_path):
    tab, path = shown
    tab.open(path, 1280)
    tab.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    tab.call("Emulation.setEmulatedMedia", media="print")
    rows = "[...document.querySelectorAll('#claims tbody tr')].filter(row => row.offsetHeight > 0).length"
    assert tab.run(rows) == len(claims.REGISTRY)
    long = "[...document.querySelectorAll('#table-training_groups + .scroll tbody tr')].filter(row => row.offsetHeight > 0).length"
    assert tab.run(long) == page.PRINTED
    tab.call("Emulation.setEmulatedMedia", media="")
    if shutil.which("pdftotext"):
        done = subprocess.run(
            ["pdftotext", "-layout", tmp_path / "report.pdf", "-"], capture_output=True, text=True, check=True
        )
        assert all(re.search(rf"^\s*{claim.id}\b", done.stdout, re.MULTILINE) for claim in claims.REGISTRY)
