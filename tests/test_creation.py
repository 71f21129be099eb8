"""Creation: proposals are usable texts, bad ones cost little, and luck on the choosing questions is not believed."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from enigma import __main__ as cli
from enigma.data.principles import MAX_CHARACTERS, Principle, load_pool
from enigma.data.questions import load_questions
from enigma.errors import InputError
from enigma.method.stats import mean_interval
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import create as creation
from enigma.stages import select as sufficiency
from enigma.stages.claims import Tables
from enigma.stages.claims import creation as claim_c3b
from enigma.stages.create import Proposal, halve, propose, schedule, search

SEEDS = [
    Principle("a", "Check the evidence, because claims mislead.", "Believe every claim."),
    Principle("b", "Number the steps"),
    Principle("c", "Be kind. Always."),
]
QUESTIONS = [f"select {i}?" for i in range(12)]
FRESH = [f"heldout {i}?" for i in range(12)]
BOOT = dict(resamples=400, seed=0)


def noisy(generator, gains=None, calls=None):
    """A score with unit noise per question and text; `gains` gives some texts a true advantage. 10 tokens a question."""

    def score(texts, contrasts, questions, name):
        if calls is not None:
            calls.append((name, texts, contrasts, questions))
        true = np.array([(gains or {}).get(text, 0.0) for text in texts])
        return true + generator.normal(size=(len(questions), len(texts))), np.full(
            len(texts), 10 * len(questions)
        )

    return score


def numbered(count, seed="a"):
    return [Proposal(seed, f"proposal {i}", "toy") for i in range(count)]


# ---------------------------------------------------------------- proposals


def test_operators():
    others = ["Be brief.", "Be kind."]
    assert creation.imperative(SEEDS[0].text, others) == ["Check the evidence."]
    assert creation.imperative("When it rains, stay at home. Or swim.", others) == ["Stay at home."]
    assert creation.imperative(", what", others) == []
    assert creation.explicit("Number the steps", others) == [
        "Number the steps. Say so explicitly in your reasoning."
    ]
    assert creation.combine("Number the steps", others) == ["Number the steps. Be brief."]
    assert creation.combine("Number the steps", []) == []
    for text in creation.concrete("Number the steps", others):
        assert (
            text.startswith("Number the steps. ") and text.endswith("sentence.") or text.endswith("example.")
        )


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ('\n Principle: "Show your steps."\nHope this helps!', "Show your steps."),
        ("Here is the rewritten principle: Count twice. Then cut onc", "Count twice."),
        ("- **Be brief**", "Be brief"),
        ("1. Use 3.5 units at most. Be", "Use 3.5 units at most."),
        ("  \n ", ""),
    ],
)
def test_cleaned(output, expected):
    assert creation.cleaned(output) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("x" * (MAX_CHARACTERS + 1), "501 characters"),
        ("Say <|im_end|> often.", "chat-template token"),
        ("Write <answer> first.", "format tag"),
        ("Be \ufffd kind.", "broken character"),
        ("number  THE steps", "same as another"),
        ("believe every claim.", "same as another"),
        ("Say QQ.", "special"),
    ],
)
def test_an_unfit_rewriting_is_logged_and_never_measured(text, reason):
    rewrites = [[(text, 7), ("A fine text.", 5)], [("a fine  TEXT.", 5)], []]
    proposals = propose(SEEDS, rewrites, lambda text: "special token" if "QQ" in text else None)
    bad = next(p for p in proposals[0] if p.origin == "rewrite")
    assert bad.reason.startswith("refused: ") and reason in bad.reason
    assert [p.reason for p in proposals[1] if p.origin == "rewrite"] == ["refused: the same as another text"]
    calls = []
    table = search(SEEDS, proposals, QUESTIONS, FRESH, noisy(np.random.default_rng(0), calls=calls), BOOT)
    measured = {t for _, texts, *_ in calls for t in texts}
    assert text not in measured - {p.text for p in SEEDS} and "A fine text." in measured
    row = table[(table.seed == "a") & (table.origin == "rewrite")].iloc[0]
    assert (row["round"], row.questions, row.tokens, row.accepted) == (0, 0, 7, False)
    assert math.isnan(row.gain)


def test_a_proposal_competes_with_the_other_seeds_or_the_antithesis():
    assert creation.contrasts_of(SEEDS, 1) == [SEEDS[0].text, SEEDS[2].text]
    assert creation.contrasts_of(SEEDS[:1], 0) == ["Believe every claim."]
    calls = []
    search(
        SEEDS,
        propose(SEEDS, [[], [], []]),
        QUESTIONS,
        FRESH,
        noisy(np.random.default_rng(0), calls=calls),
        BOOT,
    )
    for name, texts, contrasts, _ in calls:
        i = int(name.split("-")[1])
        assert texts[0] == SEEDS[i].text and texts[0] not in contrasts


# ---------------------------------------------------------------- halving


def test_halve_keeps_the_best_in_their_order():
    assert halve([0.1, 0.9, -1.0, 0.5], 2) == [1, 3]
    assert halve([0.3, 0.3, 0.3], 2) == [0, 1]
    assert halve([], 1) == []


@pytest.mark.parametrize(
    ("proposals", "questions", "expected"),
    [(8, 12, [3, 6, 12]), (9, 12, [2, 3, 6, 12]), (2, 12, [12]), (1, 12, []), (0, 12, []), (16, 2, [1, 2])],
)
def test_schedule(proposals, questions, expected):
    assert schedule(proposals, questions) == expected


def test_rounds_ask_new_questions_and_bad_proposals_cost_little():
    calls = []
    gains = {"proposal 5": 5.0, "proposal 2": 3.0}
    table = search(
        SEEDS[:1], [numbered(8)], QUESTIONS, FRESH, noisy(np.random.default_rng(1), gains, calls), BOOT
    )
    assert [len(texts) - 1 for _, texts, *_ in calls] == [8, 4, 2, 1]
    asked = [q for *_, questions in calls for q in questions]
    assert asked == QUESTIONS + FRESH  # each once; those that judge chose nothing
    assert sorted(table.questions) == [3] * 4 + [6] * 2 + [12, 24]
    assert (table.tokens == 10 * table.questions).all() and (table.seed_tokens == 240).all()
    best = table.loc[table.questions.idxmax()]
    assert best.proposal == "proposal 5" and best.accepted and best["round"] == 3
    assert table.gain.notna().sum() == table.accepted.sum() == 1
    assert best.gain == pytest.approx(best.si_proposal - best.si_seed)
    assert table.filter(like="gain_round").notna().sum().tolist() == [8, 4, 2]
    assert table.reason.str.len().min() > 0


def test_the_gain_is_paired_by_question():
    """Questions differ by far more than texts do: only the pairing can see the gain."""
    generator = np.random.default_rng(0)

    def score(texts, contrasts, questions, name):
        base = generator.normal(0, 10, (len(questions), 1)) + generator.normal(
            0, 0.01, (len(questions), len(texts))
        )
        return base + 0.1 * np.arange(len(texts)), np.ones(len(texts))

    table = search(SEEDS[:1], [numbered(1)], QUESTIONS, FRESH, score, BOOT)
    assert table.accepted.item() and table.gain.item() == pytest.approx(0.1, abs=0.02)


def test_the_winners_curse_is_not_accepted():
    """All true gains are zero: the winner of the halving looks good on its own questions, and fresh ones refuse it."""
    generator = np.random.default_rng(0)
    in_sample, believed, accepted = [], [], []
    for _ in range(300):
        seen = []

        def score(texts, contrasts, questions, name, seen=seen):
            si, tokens = noisy(generator)(texts, contrasts, questions, name)
            seen.append((name, texts, si))
            return si, tokens

        row = search(SEEDS[:1], [numbered(16)], QUESTIONS, FRESH, score, BOOT).dropna(subset="gain").iloc[0]
        own = np.concatenate(
            [si[:, texts.index(row.proposal)] - si[:, 0] for name, texts, si in seen if "round" in name]
        )
        in_sample.append(own.mean())
        believed.append(mean_interval(own, **BOOT).low > 0)
        accepted.append(row.accepted)
        assert row[f"gain_round{row['round']}"] == pytest.approx(own.mean())
    assert np.mean(np.array(in_sample) > 0) > 0.8
    assert np.mean(believed) > 0.06  # at most 0.025 would be right
    assert np.mean(accepted) <= 0.05


def test_a_worse_proposal_is_not_accepted_though_its_interval_excludes_zero():
    gains = {"proposal 0": -5.0}
    row = search(
        SEEDS[:1], [numbered(1)], QUESTIONS, FRESH, noisy(np.random.default_rng(0), gains), BOOT
    ).iloc[0]
    assert row.gain_high < 0 and not row.accepted and "below zero" in row.reason


def test_no_usable_proposal_gives_an_empty_table():
    table = search(SEEDS[:1], [[]], QUESTIONS, FRESH, noisy(np.random.default_rng(0)), BOOT)
    assert table.empty and list(table) == list(creation.COLUMNS) and table.accepted.dtype == bool


# ---------------------------------------------------------------- measuring


def test_own_sufficiency_is_the_row_bound_of_stage_one():
    scores = np.random.default_rng(0).normal(0, 2, (6, 3))
    source = [0, 0, 1, 1, 2, 2]
    row = sufficiency.bound_values([scores], [source], principle=0).row[0]
    assert creation.own_sufficiency(scores[:2]) == pytest.approx(row / math.log(3))


@pytest.fixture
def score_with(toy_tokenizer, tmp_path):
    spec = SimpleNamespace(samples=2, batch_size=12, max_tokens=6)
    how = dict(spec=spec, placement="question", demonstration=False, seed=0, folder=tmp_path, key="k")
    return lambda model: creation.model_score(model, toy_tokenizer, **how)


@pytest.fixture
def toy_score(score_with, toy_model):
    return score_with(toy_model().eval())


def test_measuring_resumes(score_with, toy_score, tmp_path):
    texts, contrasts, questions = (
        ["Be kind.", "Be brief.", "Be bold."],
        ["Be calm."],
        ["what?", "why?", "who?"],
    )
    si, tokens = toy_score(texts, contrasts, questions, "r")
    assert si.shape == (3, 3) and (si <= 1).all() and tokens.shape == (3,) and (tokens > 0).all()
    parts = sorted((tmp_path / "r").glob("part-*.json"))
    assert len(parts) == 2
    parts[1].unlink()
    times = parts[0].stat().st_mtime_ns
    np.testing.assert_array_equal(toy_score(texts, contrasts, questions, "r")[0], si)
    assert parts[0].stat().st_mtime_ns == times
    no_model = score_with(None)
    np.testing.assert_array_equal(no_model(texts, contrasts, questions, "r")[1], tokens)
    with pytest.raises(AttributeError):  # other contrasts were not measured
        no_model(texts, ["Be wild."], questions, "r")


def test_a_text_against_itself_has_no_sufficiency(toy_score):
    si, _ = toy_score(["Be kind.", "Be bold."], ["Be kind."], ["what?", "why?"], "same")
    np.testing.assert_allclose(si[:, 0], 0, atol=1e-6)
    assert (np.abs(si[:, 1]) > 1e-6).all()


def test_rewritings_follow_their_seed_and_count_tokens(toy_model, toy_tokenizer):
    model = toy_model().eval()
    state = torch.get_rng_state()
    first = creation.rewritings(model, toy_tokenizer, SEEDS[:2], 0, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(mine) for mine in first] == [creation.REWRITES] * 2
    assert all(1 <= tokens <= creation.REWRITE_TOKENS for mine in first for _, tokens in mine)
    assert creation.rewritings(model, toy_tokenizer, SEEDS[:2], 0, 8) == first
    assert creation.rewritings(model, toy_tokenizer, SEEDS[:2], 1, 8) != first


# ---------------------------------------------------------------- the command


def test_accepted_proposals_make_a_pool_and_a_claim(tmp_path):
    """From the search to the files that stage 2 and the claims read."""
    seeds = [*SEEDS, Principle("d", "Be bold.", "Be shy.", "f", "s")]
    proposals = propose(seeds, [[] for _ in seeds])
    gains = {p.proposal: 4.0 for p in (*proposals[0], *proposals[3]) if p.origin == "explicit"}
    table = search(seeds, proposals, QUESTIONS, FRESH, noisy(np.random.default_rng(3), gains), BOOT)
    assert sorted(table[table.accepted].seed) == ["a", "d"]
    results = Results(load_profile("smoke"), tmp_path)
    results.write_table("creation", table, creation.CAPTION)
    path = results.write_yaml("created_principles", creation.created_pool(seeds, table), "c")
    pool = load_pool(path)
    assert [p.name for p in pool] == ["a", "b", "c", "d"]
    assert pool[3].text == "Be bold. Say so explicitly in your reasoning."
    assert (pool[3].antithesis, pool[3].family) == ("Be shy.", "f") and pool[3].source.startswith(
        "created from d"
    )
    assert (pool[1].text, pool[1].source) == (SEEDS[1].text, None)
    pd.testing.assert_frame_equal(results.read_table("creation"), table, check_dtype=False, rtol=1e-5)
    finding = claim_c3b(Tables(results.profile, results))
    assert "2 of" in finding.parts[0].detail and finding.parts[0].effect.low > 0


def test_the_command_end_to_end_and_again(tmp_path, capsys, monkeypatch):
    """The tiny random model of the smoke profile: every file is written, nothing is sampled twice."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "principles:\n- {name: a, text: Be kind.}\n- {name: b, text: Number the steps.}\n", encoding="utf-8"
    )
    command = ["create", str(path), "--profile", "smoke", "--results", str(tmp_path / "r")]
    assert cli.main(command) == 0
    assert "creation.csv" in capsys.readouterr().out
    profile = load_profile("smoke")
    results = Results(profile, tmp_path / "r")
    table = results.read_table("creation")
    assert list(table)[: len(creation.COLUMNS)] == list(creation.COLUMNS)
    assert table.groupby("seed").gain.count().tolist() == [1, 1]
    assert (table[table.gain.notna()].questions == 8).all()
    assert set(table.origin) == {"concrete", "explicit", "combine", "imperative", "rewrite"}
    assert [p.name for p in load_pool(results.tables / "created_principles.yaml")] == ["a", "b"]
    select, fresh = (load_questions(profile.questions, role, 4, 0) for role in ("select", "heldout"))
    assert not set(select) & set(fresh)
    before = (results.tables / "creation.csv").read_bytes()
    monkeypatch.setattr(sufficiency, "sample_completions", None)
    assert cli.main(command) == 0
    assert (results.tables / "creation.csv").read_bytes() == before


def test_an_only_seed_needs_an_antithesis(tmp_path, capsys):
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump({"principles": [{"name": "a", "text": "Be kind."}]}), encoding="utf-8")
    assert cli.main(["create", str(path), "--profile", "smoke", "--results", str(tmp_path / "r")]) == 2
    err = capsys.readouterr().err
    assert (
        "one.yaml: found 1 principle without an antithesis; expected at least 2" in err
        and err.count("\n") == 1
    )
    assert not (tmp_path / "r").exists()
    with pytest.raises(InputError, match="without an antithesis"):
        creation.load_seeds(str(path))
