"""Tables as text: CSV for programs and spreadsheets, Markdown for readers. Source: our choice [D]."""

import html
import io
import math
import re
import unicodedata

import numpy as np
import pandas as pd

_FORMULA_STARTS = ("=", "+", "-", "@", "'")


def escape_cell(text: str) -> str:
    """Text that a spreadsheet would run as a formula, or that begins with an apostrophe, gets a leading apostrophe.

    These are texts beginning with tab, or with = + - @ in any width, also after white space. Numbers, also those held as
    text ("-0.5"), are never touched. Carriage returns become line feeds. `unescape_cell` is the inverse. By hand, since no
    CSV writer does it.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "'" + text if _is_formula(text) and not _is_number(text) else text


def unescape_cell(text: str) -> str:
    """The text that `escape_cell` was given."""
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def _is_formula(text: str) -> bool:
    first = unicodedata.normalize("NFKC", text.lstrip()[:1])
    return text.startswith("\t") or first.startswith(_FORMULA_STARTS)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()


def csv_text(frame: pd.DataFrame) -> str:
    """`frame` as CSV without its index: escaped text, six significant digits, empty cells for missing values."""
    shown = frame.map(lambda cell: escape_cell(cell) if isinstance(cell, str) else cell)
    shown = shown.rename(columns=lambda name: escape_cell(str(name)))
    return shown.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def read_csv(source, text_columns: list[str]) -> pd.DataFrame:
    """What `csv_text` wrote; `text_columns` come back as text, whatever they look like. Raises ValueError."""
    kinds = {name: str for name in text_columns}
    frame = pd.read_csv(source, dtype=kinds, keep_default_na=False, na_values=[""], low_memory=False)
    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]) and not pd.api.types.is_bool_dtype(frame[name]):
            frame[name] = frame[name].map(lambda cell: unescape_cell(cell) if isinstance(cell, str) else cell)
    return frame


def text_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that hold text."""
    return [str(c) for c in frame.columns if any(isinstance(value, str) for value in frame[c])]


def written(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` as it is once it was written and read again."""
    return read_csv(io.StringIO(csv_text(frame)), text_columns(frame))


def markdown_table(frame: pd.DataFrame) -> str:
    """`frame` as a Markdown table with four significant digits. Text is escaped: no HTML, no broken cells."""
    return frame.map(_markdown_cell).to_markdown(index=False, disable_numparse=True) + "\n"


def interval_text(value: float, low: float, high: float) -> str:
    """ "0.12 [0.05, 0.19]" with three significant digits, "0.12" without an interval, "not measured" for NaN."""
    if math.isnan(value):
        return "not measured"
    number = f"{value:.3g}"
    return number if math.isnan(low) or math.isnan(high) else f"{number} [{low:.3g}, {high:.3g}]"


def _markdown_cell(value) -> str:
    if value is None or value is pd.NA:
        return ""
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else f"{value:.4g}"
    return markdown_text(str(value)).replace("|", "\\|")


def markdown_text(text: str) -> str:
    """`text` in one line of Markdown that shows it and does nothing else."""
    escaped = html.escape(" ".join(str(text).split()), quote=False)
    # A bracket matters only where it could be a link's.
    return re.sub(r"([\\`*_]|\](?=[(\[]))", r"\\\1", escaped)
