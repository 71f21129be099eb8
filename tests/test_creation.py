"""Creation: proposals keep their meaning, bad ones cost little, and luck on the choosing questions is not believed."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from enigma import __main__ as cli
from enigma.data.principles import MAX_CHARACTERS, Principle, load_pool
from enigma.llm import matched
from enigma.llm import rewards as encoders
from enigma.method import sufficiency as si
from enigma.method.stats import ratio_difference
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.run.verify import verify
from enigma.stages import Earlier, proposals
from enigma.stages import create as creation
from enigma.stages.claims import creation as claim_c3b
from enigma.stages.create import schedule, search
from enigma.stages.judging import Tables
from enigma.stages.proposals import Proposal, propose

SEEDS = [
    Principle("a", "Check the evidence, because claims mislead.", "Believe every claim."),
    Principle("b", "Number the steps"),
    Principle("c", "Be kind. Always."),
]
SYMBOLS = 12


def world(generator, laws, calls=None):
    """An `ask` of an exact model: a text is a law over symbols, a completion one symbol drawn from it."""

    def ask(texts, role, start, end):
        names = [p.text for p in SEEDS] + texts
        if calls is not None:
            calls.append((texts, role, start, end))
        logs = np.log([laws[name] for name in names])
        rows = []
        for _ in range(start, end):
            drawn = [generator.choice(SYMBOLS, p=laws[name]) for name in names]
            rows.append({"source": list(range(len(names))), "reasoning": logs[:, drawn].T.tolist()})
        return rows

    return ask


def law(symbol, weight):
    """A law with more `weight` on one symbol than on each other."""
    values = np.ones(SYMBOLS)
    values[symbol] = weight
    return values / values.sum()


LAWS = {p.text: law(i, 8.0) for i, p in enumerate(SEEDS)}
NUMBERED = [Proposal("a", "toy", f"proposal {i}", 0.9) for i in range(8)]
ALIKE = LAWS | {p.text: LAWS[SEEDS[0].text] for p in NUMBERED}


def test_operators():
    assert proposals.imperative(SEEDS[0].text) == ["Check the evidence."]
    assert proposals.imperative("When it rains, stay at home. Or swim.") == ["Stay at home."]
    assert proposals.imperative(", what") == []
    assert proposals.concrete("Number the steps")[0] == "Number the steps. Show it in one example."


def test_cleaned():
    said = '\n Principle: "Show your steps."\nHope this helps!'
    assert proposals.cleaned(said) == "Show your steps." and proposals.cleaned("  \n ") == ""
    assert proposals.cleaned("Here is the principle: Count twice. Then cut onc") == "Count twice."
    assert proposals.cleaned("1. Use 3.5 units at most. Be") == "Use 3.5 units at most."


UNFIT = {
    "x" * (MAX_CHARACTERS + 1): "501 characters",
    "Say <|im_end|> often.": "chat-template token",
    "Write <answer> first.": "format tag",
    "believe every claim.": "same as another",
    "Say QQ.": "special",
    "Bananas sing purple windows.": "similarity",
    "Believe every claim, because evidence misleads.": "antithesis",
}


def test_unfit_rewritings_are_shown_and_never_measured():
    encoder = encoders.SemanticReward(SEEDS)

    def near(principle, texts):
        return proposals.nearness(encoder, principle, texts)

    fits = {"Say QQ.": "special token"}.get
    fine, again = "Check the evidence for claims.", "check the evidence FOR claims."
    found = propose(SEEDS, [[*UNFIT, fine], [again], []], fits, near)
    *bad, fine, again = (p for p in found if p.origin == "rewrite")
    for proposal, reason in zip(bad, UNFIT.values(), strict=True):
        assert reason in proposal.reason, proposal
    assert not fine.reason and fine.similarity > proposals.SIMILARITY
    assert again.reason == "refused: the same as another text"
    calls = []
    laws = LAWS | {p.text: LAWS[SEEDS[0].text] for p in found}
    table = search(SEEDS, found, world(np.random.default_rng(0), laws, calls), 4, 4)
    assert not UNFIT.keys() & {text for texts, *_ in calls for text in texts}
    rows = table[table.origin == "rewrite"].head(len(UNFIT))
    assert rows.reason.tolist() == [p.reason for p in bad]
    assert not rows["round"].any() and not rows.accepted.any() and rows.gain.isna().all()


def test_schedule():
    assert schedule(8, 12) == [3, 6, 12] and schedule(9, 12) == [2, 3, 6, 12] and schedule(16, 2) == [1, 2]
    assert schedule(2, 12) == [12] and schedule(1, 12) == schedule(0, 12) == []


def test_a_gain_is_that_of_the_set_with_the_text_in_its_seeds_place():
    """Against the definition: SI of both sets, each from its own completions alone."""
    laws = LAWS | {"new": law(0, 40.0)}
    rows = world(np.random.default_rng(0), laws)(["new"], "select", 0, 30)
    found = creation.reading(rows, 3, 0, 3)
    scores, source = [row["reasoning"] for row in rows], [row["source"] for row in rows]
    sides = [si.principle_information(si.within(scores, source, of)[0]) for of in ([3, 1, 2], [0, 1, 2])]
    for side, expected in zip((found.own, found.seed), sides, strict=True):
        assert side.sufficiency(3) == pytest.approx(expected.sufficiency(3)[0])
    gain = found.own.gain(found.seed, 3)
    assert gain.value == pytest.approx(found.own.sufficiency(3) - found.seed.sufficiency(3))
    assert gain.low < gain.value < gain.high
    assert ratio_difference(found.own, found.own) == (0, 0, 0)  # paired: no noise is left


def test_rounds_ask_new_questions_and_the_better_text_is_accepted():
    calls, laws = [], ALIKE | {"proposal 5": law(0, 500.0)}
    table = search(SEEDS, NUMBERED, world(np.random.default_rng(1), laws, calls), 32, 36)
    assert [len(texts) for texts, *_ in calls] == [8, 4, 2, 1]
    asked = [("select", 0, 8), ("select", 8, 16), ("select", 16, 32), ("heldout", 0, 36)]
    assert [call[1:] for call in calls] == asked
    best = table[table.accepted].iloc[0]
    assert best.text == "proposal 5" and best.gain_low > 0 and best.si_read >= best.si_seed
    assert table.gain.notna().sum() == table.accepted.sum() == 1 and table.reason.str.len().gt(0).sum() == 7


def test_a_text_that_its_seeds_wording_cannot_read_is_refused():
    """Nonsense that is told apart perfectly: a symbol that no other text writes, and that means nothing to the seed."""
    laws = LAWS | {"Qzx zzq.": law(9, 1e4)}
    nonsense = [Proposal("a", "toy", "Qzx zzq.", 0.9)]
    row = search(SEEDS, nonsense, world(np.random.default_rng(0), laws), 4, 36).iloc[0]
    assert row.gain_low > 0 and row.si_read < row.si_seed
    assert not row.accepted and "seed's wording" in row.reason


def test_the_winners_curse_is_not_accepted():
    """All true gains are zero: the winner looks good on the questions that chose it, and fresh ones refuse it."""
    generator = np.random.default_rng(0)
    tables = [search(SEEDS, NUMBERED, world(generator, ALIKE), 12, 12) for _ in range(150)]
    judged = pd.concat(tables).dropna(subset="gain")
    assert len(judged) == 150 and judged.gain_search.mean() > 0.01
    assert abs(judged.gain.mean()) < 0.01 and judged.accepted.mean() <= 0.05


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished `enigma create` on the smoke profile's tiny random model, for two principles of its own pool."""
    folder = tmp_path_factory.mktemp("create")
    pool = [
        {key: getattr(p, key) for key in ("name", "text", "antithesis")} for p in load_pool("default")[:2]
    ]
    (folder / "mine.yaml").write_text(yaml.safe_dump({"principles": pool}), encoding="utf-8")
    text = (cli.Path(proposals.__file__).parents[1] / "profiles/smoke.yaml").read_text(encoding="utf-8")
    text = text.replace("questions: 4", "questions: 2").replace("max_tokens: 16", "max_tokens: 6")
    (folder / "smoke.yaml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(creation, "FRESH", 4)
        assert cli.main(command(folder, "r")) == 0
    profile = load_profile(folder / "smoke.yaml")
    return SimpleNamespace(folder=folder, profile=profile, results=Results(profile, folder / "r"), pool=pool)


def command(folder, results):
    named = {"--profile": "smoke.yaml", "--results": results}
    return ["create", str(folder / "mine.yaml"), *(x for k, v in named.items() for x in (k, str(folder / v)))]


def test_the_command_writes_a_table_and_a_pool(made):
    table = made.results.read_table("creation")
    assert list(table) == list(creation.COLUMNS) and {"concrete", "rewrite"} <= set(table.origin)
    assert table.groupby("seed").gain.count().max() == 1
    pool = load_pool(made.results.tables / creation.POOL)
    assert [p.name for p in pool] == [one["name"] for one in made.pool]
    lines = {what: fault for what, fault in verify(made.profile, made.results) if "creat" in what}
    assert lines == {"table creation": "", "sidecar of table creation": ""}


def test_an_interrupted_creation_goes_on_and_gives_the_same_table(made, monkeypatch, capsys):
    monkeypatch.setattr(creation, "FRESH", 4)
    sample, calls = matched.sample_and_score, []

    def interrupted(*given, **options):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(*given, **options)

    monkeypatch.setattr(matched, "sample_and_score", interrupted)
    assert cli.main(command(made.folder, "again")) == 130
    assert not (made.folder / "again/smoke/tables/creation.csv").exists()
    assert cli.main(command(made.folder, "again")) == 0
    again, count = Results(made.profile, made.folder / "again"), len(calls)
    pd.testing.assert_frame_equal(again.read_table("creation"), made.results.read_table("creation"))
    assert cli.main(command(made.folder, "again")) == 0 and len(calls) == count  # nothing is measured twice


def test_claim_c3b_reads_a_creation_of_this_profile_and_pool_alone(made, tmp_path):
    def said(profile, table=None):
        results = Results(profile, tmp_path / "r")
        if table is not None:
            results.write_table("creation", table, "", "create")
        return claim_c3b(Tables(profile, Earlier(results))).parts[0]

    table = made.results.read_table("creation")
    table.loc[0, ["accepted", "gain", "gain_low", "gain_high"]] = True, 0.2, 0.1, 0.3
    found = said(made.profile, table)
    assert found.judged() == "supported" and "proposals for 2 of the pool's 16 principles" in found.detail
    assert "not tested" in said(load_profile("smoke")).detail  # made with another profile of that name
    assert "not tested" in said(made.profile, table.assign(seed_text="Another pool's.")).detail


def test_another_profiles_results_are_not_touched(made, capsys):
    other = Results(load_profile("smoke"), made.folder / "other")
    other.write_record({})
    assert cli.main(command(made.folder, "other")) == 2
    assert "found results of another profile" in capsys.readouterr().err
    assert [path.name for path in other.folder.iterdir()] == ["run.json"]


def test_an_only_seed_needs_an_antithesis(tmp_path, capsys):
    (tmp_path / "one.yaml").write_text("principles: [{name: a, text: Be kind.}]", encoding="utf-8")
    assert cli.main(["create", str(tmp_path / "one.yaml"), "--results", str(tmp_path / "r")]) == 2
    assert "found 1 principle without an antithesis" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
