"""report.html: the executed notebooks as one page, by nbconvert, with the claims first. Works offline; nothing runs in it."""

import contextlib
import html
import re
from pathlib import Path

from enigma.errors import InputError
from enigma.record.cells import interval_text
from enigma.record.files import atomic_write_text, read_json
from enigma.record.results import FIGURE, Results, figure_label

NAME = "report.html"
STYLE = """
:root{color-scheme:light dark}*{box-sizing:border-box}html{scroll-padding-top:4em}
body{font:16px/1.55 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:0 16px 64px;overflow-wrap:break-word}
nav{position:sticky;top:0;background:Canvas;padding:10px 0;border-bottom:1px solid GrayText;z-index:1;
overflow-x:auto;white-space:nowrap}nav a{margin-right:1.2em}
h1{line-height:1.2}h2{margin-top:2.5em;border-top:1px solid GrayText;padding-top:1em}
img{max-width:100%;height:auto;background:#fff;border-radius:4px}figure{margin:2em 0}figcaption{font-size:14px}
figcaption a{margin-left:.5em}
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:13px;margin:1em 0}
caption{text-align:left;font-weight:600;padding:4px 0}
td,th{border-bottom:1px solid color-mix(in srgb,GrayText 40%,transparent);padding:4px 8px;text-align:left;vertical-align:top}
td{max-width:32em;white-space:pre-wrap}.long{min-width:14em}
pre{white-space:pre-wrap;font-size:13px}math[display=block]{overflow-x:auto;max-width:100%;margin:1em 0}
details{margin:.6em 0}summary{cursor:pointer}
.verdict{font-weight:700}.supported{color:#0b5c9e}.not-supported{color:#a8400a}
@media(prefers-color-scheme:dark){.supported{color:#7cc0f5}.not-supported{color:#ffa06b}}
"""
TAGS = frozenset(
    re.findall(
        r"\w+",
        "a b blockquote br caption code div em h2 h3 h4 h5 i li ol p pre span strong sub sup table tbody td th thead tr ul",
    )
)
MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)
VERDICTS = ("supported", "not supported", "undecided", "not tested at this size")
LONG = 12  # lines of printed output; more are folded away
PLACE = "\ue000{}\ue001"  # where a formula stands while the text around it is cleaned


def publish_page(profile, results: Results, published: bool = False) -> Path:
    """Write results/<profile>/report.html: the verdicts, then every notebook's text, figures and tables in reading order.

    The page of what is `published` does not compare itself with what is published.
    Raises InputError where no notebook was executed yet.
    """
    notebooks = [
        path
        for path in sorted(results.notebooks.glob("*.ipynb"))
        if re.fullmatch(r"\w+", path.stem, re.ASCII)
    ]
    if not notebooks:
        raise InputError(
            f"{results.notebooks}: found no executed notebook; expected those of a run; "
            f"start one with `enigma run {profile.name}`"
        )
    comparison = results.folder / "reproduction.md"
    compared = comparison.is_file() and not published
    links = [("claims", "Claims")] + [("reproduction", "Reproduction")] * compared
    links += [(path.stem, path.stem[3:].replace("_", " ").capitalize()) for path in notebooks]
    names = [path.stem for path in results.figures.glob("*.json") if not results.fault(FIGURE, path.stem)]
    sidecars = {name: results.sidecar(FIGURE, name) for name in names}
    body = [
        f"<h1>ENIGMA companion: profile {html.escape(profile.name)}</h1>",
        f"<p>{html.escape(profile.description)}</p>",
        "<nav>" + "".join(f'<a href="#{link}">{text}</a>' for link, text in links) + "</nav>",
        '<h2 id="claims">The paper\'s claims, and what was measured here</h2>',
        *_claims(results),
    ]
    if compared:
        body.append('<h2 id="reproduction">Does this run agree with the published one?</h2>')
        body.append(_markdown(comparison.read_text(encoding="utf-8")))
    for path in notebooks:
        body += [f'<section id="{path.stem}">', *_notebook(path, sidecars), "</section>"]
    head = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>ENIGMA companion, {html.escape(profile.name)}</title><style>{STYLE}</style><body>"
    )
    return atomic_write_text(results.folder / NAME, head + "\n".join(body) + "</body></html>\n")


def _claims(results: Results) -> list[str]:
    """A count of the verdicts, and of each claim one sentence and how it came about."""
    if not results.has_table("claims"):
        return ["<p>Not judged yet.</p>"]
    claims = results.read_table("claims").astype(object).fillna("")
    counts = [f"{word} {sum(claims['verdict'] == word)}" for word in VERDICTS]
    parts = [f"<p><b>{', '.join(counts).capitalize()}.</b> Each opens to its rule and to what was found.</p>"]
    for row in claims.itertuples():
        kind, verdict = (
            html.escape(text) for text in (row.verdict.replace(" ", "-"), row.verdict.capitalize())
        )
        found = "" if row.value == "" else f" {_measured(row)}."
        parts.append(
            f"<details><summary><b>{html.escape(row.id)}</b> {html.escape(row.claim)} "
            f'<span class="verdict {kind}">{verdict}.</span>{html.escape(found)}</summary>'
            f"<p>Rule. {html.escape(row.rule)}</p><p>Found. {html.escape(row.note)}</p></details>"
        )
    return parts


def _measured(row) -> str:
    low, high = (float(end) if end != "" else float("nan") for end in (row.low, row.high))
    units = f" over {row.units:.0f} {row.over}" if row.units != "" else ""
    return f"{row.measure}: {interval_text(float(row.value), low, high)}{units}"


def _figure(name: str, sidecar: dict) -> str:
    caption, finding = html.escape(sidecar["caption"]), html.escape(str(sidecar.get("finding", "")))
    files = [(f"figures/{name}.png", "PNG"), (f"figures/{name}.pdf", "PDF")]
    files += [(f"tables/{table}.csv", f"{table}.csv") for table in sidecar["inputs"]]
    links = "".join(f'<a href="{file}">{text}</a>' for file, text in files)
    return (
        f'<figure id="{name}"><a href="figures/{name}.png"><img src="figures/{name}.png" alt="{figure_label(name)}: {finding}" '
        f'loading="lazy"></a><figcaption><b>{figure_label(name)}. {finding}.</b> {caption}{links}</figcaption></figure>'
    )


def _notebook(path: Path, figures: dict[str, dict]) -> list[str]:
    """Text, figures, tables and printed output of an executed notebook. Its code is left out."""
    parts = []
    for cell in read_json(path, ("cells",))["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(_markdown("".join(cell["source"])))
            continue
        for output in cell.get("outputs", ()):
            data, name = output.get("data", {}), output.get("metadata", {}).get("figure")
            if name in figures:
                parts.append(_figure(name, figures[name]))
            elif "text/html" in data:
                parts.append(_safe("".join(data["text/html"])))
            elif "text/markdown" in data and not "".join(data["text/markdown"]).startswith("**Figure"):
                parts.append(_markdown("".join(data["text/markdown"])))
            elif output.get("name") == "stdout":
                parts.append(_printed("".join(output["text"])))
    return parts


def _printed(text: str) -> str:
    shown = f"<pre>{html.escape(text[:6000])}</pre>"
    lines = text.count("\n")
    return shown if lines <= LONG else f"<details><summary>{lines} printed lines</summary>{shown}</details>"


def _markdown(text: str) -> str:
    """Safe HTML of Markdown, headings one level down, formulas as MathML, which browsers draw by themselves."""
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    formulas = []

    def keep(found: re.Match) -> str:
        formula = (found[1] or found[2]).replace(r"\tag", r"\qquad \tag").replace(r"\log ", r"\log\, ")
        formulas.append(_formula(formula, "block" if found[1] else "inline"))
        return PLACE.format(len(formulas) - 1)

    # A text's own placeholders would be filled too, within formulas again and again.
    text = text.translate(dict.fromkeys(map(ord, PLACE.format(""))))
    page = markdown2html_mistune(MATH.sub(keep, text))
    page = re.sub(r'<a class="anchor-link".*?</a>', "", page)
    page = _safe(re.sub(r"<(/?)h([1-4])\b", lambda tag: f"<{tag[1]}h{int(tag[2]) + 1}", page))
    for number, formula in enumerate(formulas):
        page = page.replace(PLACE.format(number), formula)
    return page


def _formula(text: str, display: str) -> str:
    """MathML of a LaTeX formula; the text itself where it is none, or where more than MathML would come of it."""
    from latex2mathml.converter import convert

    found = "<"
    with contextlib.suppress(Exception):  # whatever the library raises over a text that is no formula
        found = convert(text, display=display)
    rest = re.sub(r'</?m[a-z]+( (?!href|on)[a-z]+="[\w.:/#%-]*")*\s*/?>', "", found)
    return html.escape(f"${text}$") if "<" in rest else found


def _safe(text: str) -> str:
    """HTML with nothing in it that runs: few tags, and attributes only where a link or a wide cell needs them."""
    import bleach

    text = re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL | re.IGNORECASE)
    spans = ["rowspan", "colspan"]
    text = bleach.clean(text, tags=TAGS, attributes={"a": _link, "td": spans, "th": spans}, strip=True)
    return re.sub(r"<td>(?=[^<]{40})", '<td class="long">', text)


def _link(tag: str, name: str, value: str) -> bool:
    return name == "href" and value.startswith(("https://", "http://", "#"))
