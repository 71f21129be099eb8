"""Sets of principles: eq. 13 by its letter, also where no exponential can hold it; large pools; what arms on a set can tell."""

import math
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from enigma.method import sufficiency as si
from enigma.method.infonce import mutual_information_bounds
from enigma.profile import load_profile
from enigma.stages import prediction
from enigma.stages.claims import REGISTRY
from enigma.stages.judging import log_unsteadiness


def direct(own, read, members):
    """(information, weight) of one question and one set, term by term."""
    posterior, information, weight = np.exp(log_softmax(own, axis=1)), 0.0, 0.0
    for i, row in enumerate(read):
        inside = logsumexp(row[list(members)])
        for c in members:
            information += posterior[i, c] * (math.log(len(members)) + row[c] - inside)
            weight += posterior[i, c]
    return information, weight


@pytest.mark.parametrize("scale", [1, 2000])
def test_sets_are_measured_by_their_equation(scale):
    generator = np.random.default_rng(0)
    own, read = generator.normal(size=(2, 3, 12, 6)) * scale - 800
    sets = si.candidate_sets([""] * 6, 3, False)
    for critic in (None, list(read)):
        found = si.set_information(list(own), sets, critic)
        for q in range(3):
            for s, members in enumerate(sets):
                expected = direct(own[q], own[q] if critic is None else read[q], members)
                pair = found.information[s, q], found.weight[s, q]
                assert pair == pytest.approx(expected, abs=1e-8 * scale)


def test_the_index_is_the_information_as_a_share_and_its_plain_form_the_row_bound():
    generator, k = np.random.default_rng(1), 4
    scores, source = list(generator.normal(size=(3, 8, k)) * 2), [np.repeat(range(k), 2)] * 3
    ratio = si.principle_information(scores)
    index = ratio.information.sum(1) / ratio.weight.sum(1) / math.log(k)
    assert si.sufficiency_index(scores) == pytest.approx(index)
    # Of the whole pool it is that of its principles, each weighted by how much was written under it.
    whole = ratio.information.sum() / ratio.weight.sum() / math.log(k)
    assert si.set_sufficiency_index(scores, [range(k)]) == pytest.approx([whole])
    plain = si.pooled(si.sampled_information(scores, source))
    bounds = [mutual_information_bounds(torch.tensor(s), torch.tensor(o)).row for s, o in zip(scores, source)]
    assert plain.information / plain.weight == pytest.approx(np.array(bounds))


def test_an_interval_is_of_one_row_and_scores_are_matrices():
    scores = list(np.random.default_rng(1).normal(size=(8, 4, 4)))
    ratio = si.principle_information(scores)
    found = ratio.at(2).interval(4)
    assert found.value == pytest.approx(si.sufficiency_index(scores)[2])
    assert found.low < found.value < found.high
    with pytest.raises(ValueError, match=r"expected one, \(questions,\)"):
        ratio.interval(4)
    for wrong, fault in ((scores[0], r"found shape \(4,\)"), ([np.full((4, 4), np.nan)], "found NaN")):
        with pytest.raises(ValueError, match=f"{fault}; expected for each question a matrix"):
            si.sufficiency_index(wrong)
    with pytest.raises(ValueError, match=r"found shape \(3,\); expected \(sets, size\)"):
        si.set_sufficiency_index(scores, [0, 1, 2])
    assert ratio.at(2).interval(4, seed=1) != found == ratio.at(2).interval(4, seed=0, resamples=2000)
    # Another reader's bound may lie below zero, and its interval with it.
    foreign = si.principle_information(scores, [-20 * s for s in scores]).at(0).interval(4, floor=-math.inf)
    assert foreign.low < foreign.value < 0


def test_a_pool_of_two_hundred_is_not_measured_one_set_at_a_time():
    """Nor one cell at a time where completions are long, so that most sets are far from the best principle."""
    started = time.process_time()
    sets = si.candidate_sets([str(i % 8) for i in range(200)], 16, False)
    assert len(sets) <= 5000
    found = si.set_information([np.random.default_rng(0).normal(size=(200, 200)) * 2000] * 2, sets)
    assert found.information.shape == (len(sets), 2)
    assert time.process_time() - started < 10


def test_si_is_asked_to_predict_over_arms_that_differ_in_their_set_alone():
    quantiles = [f"enigma_q{q}" for q in (90, 75, 60, 40, 25, 10)]
    assert prediction.alike(load_profile("study")) == ["enigma_high", "enigma_low", *quantiles]
    assert prediction.alike(load_profile("cpu")) == ["enigma_high"]
    assert prediction.alike(load_profile("neighbours")) == []  # dpo_sami differs in more than its set


def test_two_arms_on_one_set_are_one_unit():
    """Claim C5: grpo_sami and enigma_high share the high set; each set stands out in its own column by 0.1."""
    profile = load_profile("study")
    arms = {name: arm.set for name, arm in profile.arms.items() if arm.lambda_sami > 0}
    rows = [
        (arm, each, 0.2 + 0.1 * (each == own)) for arm, own in arms.items() for each in set(arms.values())
    ]
    shares = pd.DataFrame(rows, columns=["arm", "set", "share"])
    rule = next(claim for claim in REGISTRY if claim.id == "C5")
    [part] = rule.find(SimpleNamespace(profile=profile, get=lambda name: shares)).parts
    assert len(arms) == 9 and part.units == 8
    assert part.effect.value == pytest.approx(0.1) and part.judged() == "supported"


def test_a_run_that_did_not_move_has_no_logarithm_of_its_unsteadiness():
    curves = {"still": [-2.0] * 4, "moved": [-2.0, -1.5, -1.75, -1.0]}
    columns = {"seed": 0, "reward_graded": 0.5, "grad_norm": 1.0}
    training = pd.concat(
        pd.DataFrame({"arm": arm, "probe": curve, **columns}) for arm, curve in curves.items()
    )
    with np.errstate(all="raise"):
        found = log_unsteadiness(training).set_index("arm")["value"]
    assert np.isnan(found["still"])
    assert found["moved"] == pytest.approx(np.log(np.mean(np.diff(curves["moved"], n=2) ** 2)))
