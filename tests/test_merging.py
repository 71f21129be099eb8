"""Merged adapters against dense weights, the descent against a case worked by hand; preference pairs and DPO's SAMI term."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DPOConfig

from enigma.llm.merging import (
    adapted,
    completion_logits,
    distillation_loss,
    merge,
    multi_teacher_loss,
    sharpness_aware,
    weighted,
)
from enigma.llm.preference import PreferenceTrainer, preference_pairs
from enigma.method.infonce import sami_loss

NAMES = ["t0", "t1"]


@pytest.fixture
def policy(toy_model):
    """Two adapters with random A and B, of different alpha, on a tiny model."""
    torch.manual_seed(0)
    same = dict(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    made = get_peft_model(toy_model().eval(), LoraConfig(lora_alpha=8, **same), adapter_name="t0")
    made.add_adapter("t1", LoraConfig(lora_alpha=16, **same))
    return made.requires_grad_(False)


def deltas(model):
    """Of each layer B A alpha / r of each adapter, by hand."""
    scales = {"t0": 8 / 4, "t1": 16 / 4}
    return [
        [scales[name] * layer.lora_B[name].weight @ layer.lora_A[name].weight for name in NAMES]
        for layer in adapted(model)
    ]


PROMPTS, SAID = [[3, 4, 5], [6, 7]], [[8, 9], [10, 11, 12]]


def test_the_merge_is_the_dense_sum_for_every_matrix(policy, toy_model):
    model = policy
    weights = torch.randn(2, len(adapted(model)), generator=torch.Generator().manual_seed(1))
    parts = deltas(model)
    with torch.no_grad(), weighted(model, NAMES, weights):
        before = completion_logits(model, PROMPTS, SAID)
    merge(model, NAMES, weights)
    for i, layer in enumerate(adapted(model)):
        expected = sum(weights[t, i] * parts[i][t] for t in range(2))
        assert (layer.get_delta_weight("default") - expected).abs().max() < 1e-5
    # The whole model, with the sum written into plain weights.
    plain = toy_model().eval()
    targets = [module for name, module in plain.named_modules() if name.endswith(("q_proj", "v_proj"))]
    for i, module in enumerate(targets):
        module.weight.data += sum(weights[t, i] * parts[i][t] for t in range(2))
    with torch.no_grad():
        merged, by_hand = (completion_logits(one, PROMPTS, SAID) for one in (model, plain))
        assert (merged - by_hand).abs().max() < 1e-4 and (before - by_hand).abs().max() < 1e-4
        alone = torch.cat(
            [plain(torch.tensor([p + c])).logits[0, len(p) - 1 : -1] for p, c in zip(PROMPTS, SAID)]
        )
    assert (by_hand - alone).abs().max() < 1e-4  # padding changes nothing


def test_sharpness_aware_descent_takes_the_gradient_uphill():
    seen = []

    def loss(x, step):
        seen.append(x.detach().clone())
        return (x**2).sum()

    _, curve = sharpness_aware(torch.tensor([3.0, 4.0]), loss, 1, rho=0.5)
    assert seen[1].tolist() == pytest.approx([3.3, 4.4]) and curve == [25.0]
    found, _ = sharpness_aware(torch.tensor([1.0, -1.0]), loss, 100, rate=0.05, rho=0.01)
    assert found.abs().max() < 0.1


def test_distillation_gives_a_single_teacher_all_the_weight(policy):
    model = policy
    texts = [(PROMPTS, SAID), (PROMPTS, SAID)]
    half = torch.full((1, len(adapted(model))), 0.5)
    only_first = multi_teacher_loss(model, NAMES[:1], texts[:1], 2)
    found, curve = sharpness_aware(half, only_first, 60, rate=0.05)
    assert curve[-1] < 0.05 * curve[0]
    # One matrix may make up for another.
    assert found.mean().item() == pytest.approx(1, abs=0.2)
    both = multi_teacher_loss(model, NAMES, texts, 2)
    assert both(torch.stack([half[0]] * 2), 0) > 0
    assert [dict(layer.scaling) for layer in adapted(model)] == [{"t0": 2.0, "t1": 4.0}] * len(adapted(model))


def test_distillation_loss_by_hand():
    teacher, student = torch.tensor([[0.0, 2 * math.log(3)]]), torch.tensor([[0.0, 0.0]])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert distillation_loss(teacher, student).item() == pytest.approx(4 * expected, abs=1e-6)


# ---- preference

GOOD = "<reasoning>a</reasoning><answer>b</answer>"


def sampled(prompt, texts, ids, principle, question="q0"):
    common = {"matched_set": question, "question": question, "principle": principle, "prompt_ids": prompt}
    return [common | {"completion": t, "completion_ids": i} for t, i in zip(texts, ids, strict=True)]


ROWS = [
    *sampled([5, 6, 7], ["no", GOOD, "<answer>"], [[8, 9], [10, 11, 12], [13]], "brief"),
    *sampled([5, 6, 20], ["no", "nothing", "never"], [[30, 31], [32], [33, 34]], "shout"),
]


def test_pairs_are_best_and_worst_and_none_without_spread():
    assert preference_pairs(ROWS) == [
        {"prompt_ids": [5, 6, 7], "chosen_ids": [10, 11, 12], "rejected_ids": [8, 9]}
    ]


def test_dpo_prefers_the_chosen_and_adds_the_sami_term(tmp_path, toy_model, toy_tokenizer):
    def trainer(lambda_sami, steps):
        config = DPOConfig(
            output_dir=str(tmp_path),
            max_length=None,
            per_device_train_batch_size=1,
            max_steps=steps,
            learning_rate=1e-2,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        return PreferenceTrainer(
            toy_model(),
            args=config,
            train_dataset=Dataset.from_list(preference_pairs(ROWS)),
            processing_class=toy_tokenizer,
            peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
            rows=ROWS,
            lambda_sami=lambda_sami,
            temperature=2.0,
        )

    def logps(model, prompt, said):
        with torch.no_grad():
            scores = model(torch.tensor([prompt + said])).logits[0].log_softmax(-1)
        return sum(scores[len(prompt) - 1 + t, token] for t, token in enumerate(said))

    plain = trainer(0.0, 20)
    before = toy_model().eval()
    plain.train()
    after = plain.model.eval()
    margins = [logps(m, [5, 6, 7], [10, 11, 12]) - logps(m, [5, 6, 7], [8, 9]) for m in (before, after)]
    assert margins[1] > margins[0] + 0.1

    matrix = [
        [logps(before, p, r["completion_ids"]) / len(r["completion_ids"]) for p in ([5, 6, 7], [5, 6, 20])]
        for r in ROWS
    ]
    expected = sami_loss(torch.tensor(matrix) / 2.0, torch.tensor([0, 0, 0, 1, 1, 1]))
    both = trainer(0.5, 1)
    assert both.sami(both.model, ROWS).item() == pytest.approx(expected.item(), abs=1e-4)
    both.train()
    logged = next(row for row in both.state.log_history if "loss/sami" in row)
    assert logged["loss/sami"] == pytest.approx(0.5 * expected.item(), abs=1e-4)
    assert logged["loss"] == pytest.approx(math.log(2) + logged["loss/sami"], abs=1e-3)
