"""The programs that measure: they compare what they say, and the committed numbers are whole."""

import json
import time
from pathlib import Path

import pytest
import torch
from trl import GRPOTrainer

from benchmarks import cases, kernels, slopes
from benchmarks.__main__ import compared
from enigma.llm.trainer import EnigmaTrainer
from enigma.profile import load_profile

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_a_row_is_the_ratio_of_medians():
    row = compared(
        "sleep", cases.Case(lambda: time.sleep(0.02), lambda: time.sleep(0.08)), "a longer one", 0.5, 3
    )
    assert 0.1 < row["ratio"] < 0.5 and row["met"]
    assert row["ratio"] == pytest.approx(row["seconds"] / row["peer_seconds"], rel=0.1)


@pytest.mark.parametrize("k", [2, 4])
def test_both_sides_do_the_same_work(monkeypatch, toy_model, toy_tokenizer, k):
    """On a toy: same prompts and tokens a step, and one gradient of the packed matrix equals the dense one."""
    profile = load_profile("smoke")
    batch = k * profile.trainer.num_generations
    profile = profile.model_copy(
        update={
            "trainer": profile.trainer.model_copy(
                update={"per_device_train_batch_size": batch, "num_principles": k}
            )
        }
    )
    monkeypatch.setattr(cases, "load_model", lambda spec, seed: (toy_model(), toy_tokenizer))
    ours, peer = cases.trainer(profile, EnigmaTrainer, k), cases.trainer(profile, GRPOTrainer, k)
    assert cases.batch(ours) == cases.batch(peer) and len(cases.batch(ours)) == batch
    inputs = ours._generate_and_score_completions(cases.batch(ours))
    assert inputs["completion_mask"].all() and inputs["completion_ids"].shape[1] == 16
    for case in (cases.loss_phase(ours, peer, inputs), cases.whole_step(ours, peer)):
        case.ours(), case.peer()
    matrix = cases.sami_matrix(ours, inputs, k)
    gradients = []
    monkeypatch.setattr(ours.model, "zero_grad", lambda: gradients.append(_taken(ours.model)))
    matrix.ours(), matrix.peer()
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    cases.sinkhorn_term(ours, inputs, matrix).ours()


def _taken(model):
    """The gradients so far, which are then dropped."""
    taken = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for p in model.parameters():
        p.grad = None
    return taken


def test_slopes_vary_one_thing_at_a_time(monkeypatch, toy_model, tmp_path):
    monkeypatch.setattr(slopes, "load_model", lambda spec, seed: (toy_model(), None))
    monkeypatch.setattr(slopes, "PROMPTS", (35, 70))
    curves = slopes.measure(load_profile("smoke"), rounds=1)
    tokens = {row["principles"]: row["packed_tokens"] for row in curves if row["varied"] == "principles"}
    shared = slopes.PROMPT - slopes.OWN
    assert tokens[8] - shared == 8 * (tokens[1] - shared)
    slopes.draw(curves, {"device": "toy", "dtype": "float32"}, tmp_path / "slopes.png")
    assert (tmp_path / "slopes.png").stat().st_size > 1000


def test_shares_of_a_phase_name_what_it_does():
    """A product of large matrices is matrix products; the shares are all there is."""
    a = torch.randn(600, 600)
    found = kernels.shares("product", lambda: a @ a)
    assert found["matrix products"] > 0.5
    assert sum(value for kind, value in found.items() if kind != "phase") == pytest.approx(1, abs=0.01)
    assert kernels._kind("aten::_scaled_dot_product_flash_attention_for_cpu") == "attention"
    assert kernels._kind("aten::_log_softmax") == "softmax over the vocabulary"
    assert kernels._kind("aten::mul") == kernels.OTHER


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*[cg]pu.json")), ids=lambda path: path.name)
def test_committed_numbers_are_whole(path):
    measured = json.loads(path.read_text())
    assert {"device", "threads", "dtype", "torch", "trl", "profile"} <= measured["machine"].keys()
    for row in measured["rows"]:
        assert {"name", "against", "ratio", "target", "met"} <= row.keys()
        limit = 1.0 if row["against"] == "absolute" else row["target"]
        assert row["met"] == (row["ratio"] <= limit)
