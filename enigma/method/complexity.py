"""Lempel-Ziv complexity of text: does a model repeat itself? Source: Lempel and Ziv 1976; approximate entropy as a
detector of collapse, arXiv 2412.00430; the estimator and its control are our choice [D]."""

import math
from collections.abc import Sequence


def lempel_ziv_phrases(text: str) -> int:
    """Phrases of the exhaustive history of 1976: read from the left, each is the shortest text not yet seen.

    A phrase may be copied from text that overlaps it, so "aaaa" has two. The last phrase may be an old one.
    """
    count = start = 0
    while start < len(text):
        length = 1
        while (
            start + length <= len(text)
            and text.find(text[start : start + length], 0, start + length - 1) >= 0
        ):
            length += 1
        count, start = count + 1, start + length
    return count


def lempel_ziv_bits(text: str) -> float:
    """c log2(n) / n bits per character for c phrases in n characters; 0 below two characters.

    It tends to the entropy rate as n grows and lies above it in short texts: compare texts of one length alone.
    """
    n = len(text)
    return lempel_ziv_phrases(text) * math.log2(n) / n if n > 1 else 0.0


def matched_bits(texts: Sequence[str], reference: Sequence[str]) -> tuple[float, float]:
    """`lempel_ziv_bits` of two lists of texts, each joined by line ends and both cut to the shorter one's length."""
    pair = ["\n".join(some) for some in (texts, reference)]
    length = min(map(len, pair))
    return tuple(lempel_ziv_bits(text[:length]) for text in pair)
