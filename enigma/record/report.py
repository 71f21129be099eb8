"""report.html: the executed notebooks as one page, by nbconvert, with the claims first. Works offline; nothing runs in it."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pandas as pd

from enigma.record.cells import interval_text
from enigma.record.files import atomic_write_text, read_json
from enigma.record.results import FIGURE, Results

NAME = "report.html"
STYLE = """
:root{color-scheme:light dark}*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1000px;padding:0 16px 64px;overflow-wrap:anywhere}
nav{position:sticky;top:0;background:Canvas;padding:8px 0;border-bottom:1px solid GrayText;z-index:1}
nav a{margin-right:1em}img{max-width:100%;height:auto;background:#fff}figure{margin:1.5em 0}
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:14px}
td,th{border-bottom:1px solid GrayText;padding:4px 8px;text-align:left;vertical-align:top}
pre{overflow-x:auto;white-space:pre-wrap;font-size:13px}details{margin:.5em 0}
.supported{color:#177245}.not-supported{color:#b3261e}@media(prefers-color-scheme:dark){.supported{color:#7fd1a4}
.not-supported{color:#ff8a80}}
"""

TAGS = frozenset(
    [
        "a",
        "b",
        "blockquote",
        "br",
        "caption",
        "code",
        "div",
        "em",
        "h2",
        "h3",
        "h4",
        "i",
        "li",
        "ol",
        "p",
        "pre",
        "span",
        "strong",
        "sub",
        "sup",
        "table",
        "tbody",
        "td",
        "th",
        "thead",
        "tr",
        "ul",
    ]
)


def publish_page(profile, results: Results) -> Path:
    """Write results/<profile>/report.html: verdicts, figures in reading order, and each notebook's text and tables."""
    figures = [item for item in results.catalogue() if item.kind == FIGURE]
    stages = sorted(results.notebooks.glob("*.ipynb"))
    links = [("claims", "Claims"), ("reproduction", "Reproduction"), ("figures", "Figures")]
    links += [(path.stem, path.stem[3:].capitalize()) for path in stages]
    body = [
        f"<h1>ENIGMA companion: profile {html.escape(profile.name)}</h1>",
        f"<p>{html.escape(profile.description)}</p>",
    ]
    body.append("<nav>" + "".join(f'<a href="#{link}">{text}</a>' for link, text in links) + "</nav>")
    body += ['<h2 id="claims">Claims</h2>', *_claims(results)]
    body += [
        '<h2 id="reproduction">Reproduction</h2>',
        _reproduction(results),
        '<h2 id="figures">Figures</h2>',
    ]
    body += [_figure(number, item) for number, item in enumerate(figures, start=1)]
    body += [part for path in stages for part in (f'<h2 id="{path.stem}">{path.stem}</h2>', *_notebook(path))]
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>ENIGMA companion, {html.escape(profile.name)}</title><style>{STYLE}</style><body>"
    return atomic_write_text(results.folder / NAME, head + "\n".join(body) + "</body></html>\n")


def _claims(results: Results) -> list[str]:
    if not results.has_table("claims"):
        return ["<p>Not judged yet.</p>"]
    rows = []
    for row in results.read_table("claims").itertuples():
        kind = row.verdict.replace(" ", "-")
        found = interval_text(float(row.value), float(row.low), float(row.high))
        rows.append(
            f'<p><b>{row.id}</b> {html.escape(row.claim)} <b class="{kind}">{row.verdict}</b>: {html.escape(row.measure)} '
            f"{found}.</p><details><summary>How it came about</summary><p>{html.escape(str(row.rule))}</p>"
            f"<p>{html.escape(str(row.note))}</p></details>"
        )
    return rows


def _reproduction(results: Results) -> str:
    path = results.folder / "reproduction.md"
    return (
        f"<pre>{html.escape(path.read_text(encoding='utf-8'))}</pre>"
        if path.is_file()
        else "<p>Not compared.</p>"
    )


def _figure(number: int, item) -> str:
    caption, name = html.escape(item.sidecar["caption"]), item.name
    tables = " ".join(f'<a href="tables/{table}.csv">{table}.csv</a>' for table in item.sidecar["inputs"])
    return (
        f'<figure id="{name}"><a href="figures/{name}.png"><img src="figures/{name}.png" alt="{caption}" loading="lazy"></a>'
        f'<figcaption><b>Figure {number}.</b> {caption} <a href="figures/{name}.pdf">PDF</a> {tables}</figcaption></figure>'
    )


def _notebook(path: Path) -> list[str]:
    """Text, printed output and tables of an executed notebook. Its code is left out, and its figures stand above."""
    parts = []
    for cell in read_json(path, ("cells",))["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(_markdown("".join(cell["source"])))
            continue
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "text/html" in data and not any(kind.startswith("image/") for kind in data):
                parts.append(_safe("".join(data["text/html"])))
            elif output.get("name") == "stdout":
                parts.append(f"<pre>{html.escape(''.join(output['text'])[:4000])}</pre>")
    return parts


def _markdown(text: str) -> str:
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    return _safe(markdown2html_mistune(text))


def _safe(text: str) -> str:
    """HTML with nothing in it that runs: few tags, and links alone keep an attribute."""
    import bleach

    text = re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL | re.IGNORECASE)
    return bleach.clean(text, tags=TAGS, attributes={"a": _link}, strip=True)


def _link(tag: str, name: str, value: str) -> bool:
    return name == "href" and value.startswith(("https://", "http://", "#"))


def claims_lines(table: pd.DataFrame) -> list[str]:
    """One plain sentence for each claim, with its verdict and number."""
    return [
        f"{row.id}: {row.claim} {row.verdict}: {row.measure} {interval_text(float(row.value), float(row.low), float(row.high))}."
        for row in table.itertuples()
    ]
