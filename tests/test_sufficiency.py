"""Stage 1: the sample is the sample, subsets need no forward, the selection finds what is there."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from enigma.data.principles import Principle
from enigma.errors import InputError
from enigma.method.infonce import pointwise_mutual_information, symmetric_infonce
from enigma.stages import select as sufficiency

PRINCIPLES = [Principle(f"p{i}", f"do thing {i}", f"do not do thing {i}", "f", "s") for i in range(6)]


def matrices(k=6, n_per=2, questions=8, seed=0, strength=None):
    """Score matrices in which principle i raises its own completions' scores by `strength[i]`."""
    generator = np.random.default_rng(seed)
    strength = np.linspace(0, 4, k) if strength is None else np.asarray(strength)
    source = np.repeat(np.arange(k), n_per)
    scores = []
    for _ in range(questions):
        s = generator.normal(-60, 5, (len(source), 1)) + generator.normal(0, 0.3, (len(source), k))
        s[np.arange(len(source)), source] += strength[source]
        scores.append(s)
    return scores, [source] * questions


def pool_of(scores, source, principles=PRINCIPLES):
    k = len(principles)
    questions = [
        [{"source": s.tolist(), "reasoning": m.tolist(), "completion": m.tolist()}]
        for m, s in zip(scores, source, strict=True)
    ]
    return sufficiency.Pool(principles, [sufficiency.Block(tuple(range(k)), tuple(range(k)))], questions)


def test_estimate_agrees_with_the_losses():
    scores, source = matrices()
    table = sufficiency.estimate(scores, source, [p.name for p in PRINCIPLES])
    parts = [
        symmetric_infonce(pointwise_mutual_information(torch.tensor(s)), torch.tensor(k))
        for s, k in zip(scores, source, strict=True)
    ]
    whole = table.iloc[0]
    assert whole.row_bound == pytest.approx(np.mean([p.row_bound.item() for p in parts]))
    assert whole.column_bound == pytest.approx(np.mean([p.column_bound.item() for p in parts]))
    assert whole.si == pytest.approx(whole.row_bound / math.log(6))
    assert (table.row_low <= table.row_bound).all() and (table.row_bound <= table.row_high).all()
    # The set's bound is the mean of its principles', for equally many completions each.
    assert table.row_bound[1:].mean() == pytest.approx(whole.row_bound)


def test_a_subset_needs_no_forward():
    scores, source = matrices()
    keep = [1, 4]
    rows = np.isin(source[0], keep)
    relabelled = np.array([keep.index(k) for k in source[0][rows]])
    direct = sufficiency.estimate([s[rows][:, keep] for s in scores], [relabelled] * len(scores), ["a", "b"])
    subset = sufficiency.estimate(scores, source, [p.name for p in PRINCIPLES], keep=keep)
    np.testing.assert_allclose(subset.si, direct.si)
    assert subset.name.tolist() == ["set", "p1", "p4"]


def test_bad_matrices_are_refused():
    with pytest.raises(ValueError, match="no question"):
        sufficiency.estimate([], [], [])
    scores, source = matrices()
    scores[0][0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        sufficiency.estimate(scores, source, [p.name for p in PRINCIPLES])


@pytest.mark.parametrize("limit", [5000, 1])
def test_selection_finds_the_strong_and_the_weak(limit):
    pool = pool_of(*matrices(n_per=4, questions=12))
    sets = sufficiency.select(pool, 2, exhaustive_limit=limit)
    assert set(sets["high"]) == {4, 5}
    assert not set(sets["high"]) & set(sets["low"])
    values = {m: pool.set_values(m, "reasoning").row.mean() for m in itertools.combinations(range(6), 2)}
    assert values[tuple(sorted(sets["high"]))] == max(values.values())


def test_a_quantile_names_the_set_at_its_rank():
    pool = pool_of(*matrices(n_per=2, questions=5))
    sets = sufficiency.select(pool, 3, sets=("high", "0.5", "0.05", "low"))
    assert list(sets) == ["high", "0.5", "0.05", "low"]
    ranked = sorted(
        itertools.combinations(range(6), 3), key=lambda m: pool.set_values(m, "reasoning").row.mean()
    )
    assert sets["0.5"] == ranked[round(0.5 * 19)] and sets["0.05"] == ranked[1] and sets["high"] == ranked[-1]


@pytest.mark.parametrize("size", [2, 3, 6])
def test_all_sets_at_once_are_each_set_alone(size):
    pool = pool_of(*matrices(n_per=3, questions=4))
    sets = sufficiency.candidate_sets(6, size)
    expected = [pool.set_values(tuple(members.tolist()), "reasoning").row for members in sets]
    np.testing.assert_allclose(pool.row_values(sets, "reasoning"), expected, atol=1e-12)
    assert len(sets) == math.comb(6, size)


def test_a_large_pool_offers_a_sample_of_its_sets():
    sets = sufficiency.candidate_sets(40, 5, limit=300, seed=1)
    assert 290 <= len(sets) <= 300 and len({tuple(m) for m in sets.tolist()}) == len(sets)
    assert all(len(set(m)) == 5 for m in sets.tolist())
    assert np.bincount(sets.ravel(), minlength=40).min() > 10


def test_a_small_pool_is_refused():
    pool = pool_of(*matrices())
    with pytest.raises(InputError, match="set_size: found 4, expected at most 3"):
        sufficiency.select(pool, 4)


def test_contrasts():
    texts, blocks = sufficiency.contrast_blocks(PRINCIPLES, "others")
    assert len(texts) == 6 and len(blocks) == 1
    texts, blocks = sufficiency.contrast_blocks(PRINCIPLES, "antithesis")
    assert len(texts) == 12 and [b.texts for b in blocks] == [(i, i + 6) for i in range(6)]
    texts, blocks = sufficiency.contrast_blocks(PRINCIPLES, "both")
    assert len(texts) == 12 and blocks[0].texts == tuple(range(12))
    lone = [Principle("a", "do a", None, None, None), PRINCIPLES[0]]
    with pytest.raises(InputError, match="'a': no antithesis"):
        sufficiency.contrast_blocks(lone, "antithesis")


@pytest.fixture
def measured(toy_model, toy_tokenizer, tmp_path):
    def run(contrast="others", principles=PRINCIPLES[:3], questions=4, folder=tmp_path, samples=2):
        spec = SimpleNamespace(contrast=contrast, samples=samples, batch_size=12, max_tokens=6)
        return sufficiency.measure(
            toy_model().eval(),
            toy_tokenizer,
            principles,
            [f"what is {i}?" for i in range(questions)],
            spec=spec,
            placement="question",
            demonstration=False,
            seed=0,
            folder=folder,
            key="k",
        )

    return run


@pytest.mark.parametrize("contrast", ["others", "antithesis", "both"])
def test_measured_pool_gives_a_table(measured, contrast):
    pool = measured(contrast)
    table = sufficiency.sufficiency_table(pool, {"high": (0,) if contrast == "antithesis" else (0, 1)}, {})
    assert set(table.span) == {"reasoning", "completion"}
    assert np.isfinite(table[["si", "row_bound", "column_bound", "si_sym"]].to_numpy()).all()
    assert (table.si <= 1).all()
    k = {"others": 3, "antithesis": 2, "both": 6}[contrast]
    assert (table[table.level == "principle"].k == k).all()
    # No true SI lies outside [0, 1], so no interval does, except to hold an estimate below zero.
    assert (table.si_high <= 1).all() and (table.si_low >= np.minimum(table.si, 0) - 1e-12).all()
    sets = sufficiency.candidate_sets(3, 2)
    expected = [pool.set_values(tuple(members.tolist()), "reasoning").row for members in sets]
    np.testing.assert_allclose(pool.row_values(sets, "reasoning"), expected, atol=1e-6)


def test_measuring_resumes_and_repeats(measured, tmp_path):
    first = measured(questions=5)
    parts = sorted(tmp_path.glob("part-*.json"))
    assert len(parts) == 3
    kept = parts[0].stat().st_mtime_ns
    parts[1].unlink()
    again = measured(questions=5)
    assert parts[0].stat().st_mtime_ns == kept
    assert again.questions == first.questions
    measured(questions=2)
    assert list(tmp_path.glob("part-*.json")) == parts[:1], "parts of a longer run do not stay"


def test_the_end_token_belongs_to_the_sample():
    """Completions that differ in when they stop: the exact posterior needs the decision to stop.

    Every token ends the completion with a chance that depends on the principle; the words do not. The mutual
    information is a finite sum. With the end token the bound equals it; without, most of it is lost.
    """
    stop, limit = np.array([0.6, 0.1]), 4
    p = np.array([[(1 - s) ** t * s for t in range(limit)] + [(1 - s) ** limit] for s in stop])
    truth = float((p * np.log(p / p.mean(0))).sum(1).mean())
    words = np.arange(limit + 1)[:, None] * np.log1p(-stop)[None]
    ends = np.where(np.arange(limit + 1)[:, None] < limit, np.log(stop)[None], 0)

    def expected(scores):
        posterior = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        return math.log(2) + float((p.T * posterior).sum() / 2)

    assert expected(words + ends) == pytest.approx(truth)
    assert expected(words) < 0.5 * truth


def test_a_model_that_ignores_principles_has_no_sufficiency(toy_model, toy_tokenizer):
    """The same prompt under every name: scores agree exactly, and so the bound is zero."""
    model = toy_model().eval()
    ids = [toy_tokenizer("u:what now?\na:")["input_ids"]] * 3
    source = [0, 0, 1, 1, 2, 2]
    sampled = sufficiency.sample_completions(model, toy_tokenizer, [ids[k] for k in source], 8, 6, seed=1)
    block = sufficiency.Block((0, 1, 2), (0, 1, 2))
    result = sufficiency.score_blocks(model, toy_tokenizer, ids, sampled, source, [block])[0]
    values = sufficiency.bound_values([result["completion"]], [result["source"]])
    assert values.row[0] == pytest.approx(0, abs=1e-6)


def test_sampling_follows_the_model_and_leaves_the_generators_alone(toy_model, toy_tokenizer):
    """First tokens against the model's own distribution (chi-square), and the end token kept once."""
    model = toy_model().eval()
    ids = toy_tokenizer("u:what now?\na:")["input_ids"]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    sampled = sufficiency.sample_completions(model, toy_tokenizer, [ids] * 3000, 1, 1000, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1).numpy()
    counts = np.bincount([y[0] for y in sampled], minlength=len(p))
    common = p * 3000 > 5
    chi = ((counts - 3000 * p) ** 2 / (3000 * p))[common].sum()
    assert chi < common.sum() + 5 * math.sqrt(2 * common.sum())
    end = toy_tokenizer.eos_token_id
    longer = sufficiency.sample_completions(model, toy_tokenizer, [ids] * 300, 40, 100, seed=2)
    assert any(y[-1] == end for y in longer)
    assert all(end not in y[:-1] for y in longer)
