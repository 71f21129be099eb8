"""The coverage benchmark: its toy's bound is stage 1's, its truth is the truth, and the committed table says what was promised."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax

from benchmarks import coverage
from enigma.stages.select import bound_values

TABLE = Path(__file__).resolve().parents[1] / "results" / "coverage" / "tables" / "coverage.csv"


def test_the_toys_row_bound_is_stage_ones():
    """The same draws, scored by their full log-likelihoods."""
    source = np.repeat(np.arange(4), 2)
    row, _ = coverage.row_values(1.5, 4, 5, source, np.random.default_rng(3))
    generator = np.random.default_rng(3)
    strengths = 1.5 * np.exp(coverage.SPREAD * generator.normal(size=(5, 1, 1)))
    points = strengths * np.eye(4)[source] + generator.normal(size=(5, 8, 4))
    centres = strengths[:, :, :, None] * np.eye(4)
    scores = -((points[:, :, None] - centres) ** 2).sum(-1) / 2
    np.testing.assert_allclose(row.mean(1), bound_values(list(scores), [source] * 5).row)


def test_the_truth_agrees_with_an_integral():
    """Two principles: the log-odds are normal, and the information is one integral over them and the strengths."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    strengths = 1.2 * np.exp(coverage.SPREAD * nodes)
    odds = strengths[:, None] ** 2 + math.sqrt(2) * strengths[:, None] * nodes
    loss = -log_softmax(np.stack([odds, np.zeros_like(odds)], -1), axis=-1)[..., 0]
    w = weights / weights.sum()
    assert coverage.information(1.2, 2) == pytest.approx(math.log(2) - w @ loss @ w, abs=0.005)


def test_a_small_cell_has_every_column():
    row = coverage.cell("principle", 4, 0.5, 6, repetitions=20)
    assert row["information"] == pytest.approx(0.5 * math.log(4), rel=0.02)
    assert 0.7 <= row["coverage"] <= 1 and row["width"] <= min(1, row["uncut_width"] + 1e-12)


def test_the_committed_table_keeps_the_promise():
    if not TABLE.exists():
        pytest.skip("results/coverage is made by python -m benchmarks.coverage")
    table = pd.read_csv(TABLE)
    error = 2 * 0.0098  # twice the Monte-Carlo error of 95 % over 500 repetitions
    enough = table[table.questions >= 12]
    assert enough.coverage.between(0.93 - error, 0.97 + error).all()
    assert (enough.coverage >= enough.percentile).all()
