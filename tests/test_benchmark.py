"""Stage 3: items, marks, isolation, external data, comparisons, resuming."""

from __future__ import annotations

import csv
import datetime
import json
import logging
import math
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from enigma.data.text import normalise
from enigma.errors import InputError
from enigma.method.stats import holm, paired_p_value
from enigma.record.results import Results
from enigma.stages import benchmark
from enigma.tasks import generate

TRUTHFULNESS = generate.read(generate.FOLDER / "truthfulness.jsonl")
REASONING = generate.read(generate.FOLDER / "reasoning.jsonl")
QUESTIONS = Path(benchmark.__file__).parent / "data" / "questions.jsonl"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setenv("ENIGMA_HEADLESS", "1")
    monkeypatch.delenv("ENIGMA_DATA", raising=False)


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, and two special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = TEMPLATE
    return made


def tiny_model(tokenizer, seed: int = 0):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def with_adapter(model, seed: int):
    """A PEFT model whose adapter is no longer the identity."""
    from peft import LoraConfig, get_peft_model

    policy = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator)
    return policy.eval()


def log_probability(model, tokenizer, context: str, continuation: str) -> float:
    """Summed log-probability of `continuation` by a forward pass of one text, no batch, no padding."""
    start = len(tokenizer(context)["input_ids"])
    ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
    with torch.no_grad():
        logps = model(ids[:, :-1]).logits[0].double().log_softmax(-1)
    return sum(logps[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1]))


def scores(items: pd.DataFrame, metric: str) -> dict[int, float]:
    chosen = items[items["metric"] == metric]
    return dict(zip(chosen["item"], chosen["value"], strict=True))


# ---- items ---------------------------------------------------------------------------------------------------------


def test_truthfulness_has_the_layout_of_truthfulqa():
    assert len(TRUTHFULNESS) >= 96
    for row in TRUTHFULNESS:
        assert list(row) == ["question", "mc1_targets", "mc2_targets"]
        single, several = row["mc1_targets"], row["mc2_targets"]
        assert sorted(single["labels"]) == [0, 0, 0, 1] and sorted(several["labels"]) == [0, 0, 0, 1, 1]
        assert len(set(several["choices"])) == len(several["choices"]) == 5
        label = dict(zip(several["choices"], several["labels"], strict=True))
        assert [label[choice] for choice in single["choices"]] == single["labels"]


def test_truthfulness_order_follows_the_rule_and_favours_no_place():
    assert [generate.ordered(row) for row in TRUTHFULNESS] == TRUTHFULNESS
    places = Counter(row["mc1_targets"]["labels"].index(1) for row in TRUTHFULNESS)
    assert set(places) == {0, 1, 2, 3} and max(places.values()) < 0.4 * len(TRUTHFULNESS)


@pytest.mark.parametrize(("targets", "chance"), [("mc1_targets", 1 / 4), ("mc2_targets", 2 / 5)])
@pytest.mark.parametrize("pick", [min, max])
def test_length_does_not_give_the_right_choice_away(targets, chance, pick):
    hits = []
    for row in TRUTHFULNESS:
        lengths = np.array([len(choice) for choice in row[targets]["choices"]])
        hits.append(np.mean(np.array(row[targets]["labels"])[lengths == pick(lengths)]))
    assert abs(np.mean(hits) - chance) < 0.1


def test_no_question_occurs_twice_or_is_also_asked_elsewhere():
    asked = [json.loads(line)["question"] for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    own = [row["question"] for row in TRUTHFULNESS + REASONING]
    assert len({normalise(question) for question in own}) == len(own)
    assert not {normalise(question) for question in own} & {normalise(question) for question in asked}


def test_committed_reasoning_items_are_what_the_generator_writes():
    committed = (generate.FOLDER / "reasoning.jsonl").read_text(encoding="utf-8")
    assert generate.dump(generate.reasoning()) == committed


def test_reasoning_items_have_four_choices_and_favour_no_place():
    assert len(REASONING) >= 100
    for row in REASONING:
        assert len(set(row["choices"])) == len(row["choices"]) == 4 and row["gold"] in range(4)
    places = Counter(row["gold"] for row in REASONING)
    assert set(places) == {0, 1, 2, 3} and max(places.values()) < 0.35 * len(REASONING)
    assert set(Counter(row["source"] for row in REASONING).values()) == {generate.PER_DATASET}


def solve(source: str, question: str) -> str | None:
    """The answer by a way of our own, where there is a short one."""
    numbers = [int(number) for number in re.findall(r"-?\d+", question)]
    if source in ("chain_sum", "products"):
        return str(eval(re.search(r"[\d+*\- ]+\d(?=[ =.])", question)[0]))
    if source == "gcd":
        return str(math.gcd(*numbers))
    if source == "letter_counting":
        letter, text = re.match(r'.* letter "(.)" .*: "(.*)"\?', question).groups()
        return str(text.count(letter))
    if source == "aiw":
        return str(int(re.search(r"(\d+) (?:sisters|female)", question)[1]) + 1)
    if source == "simple_equations":
        left, right = re.search(r": (.*) = (.*)$", question).groups() if ": " in question else ("", "")
        unknown = re.search(r"([a-z])(?![a-z])", left)[1] if left else ""
        return next(
            (str(x) for x in range(-999, 1000) if left and eval(left, {unknown: x}) == int(right)), None
        )
    return None


def test_marked_answers_are_right_by_an_independent_solution():
    solved = Counter()
    for row in REASONING:
        answer = solve(row["source"], row["question"])
        if answer is not None:
            assert row["choices"][row["gold"]] == answer, row
            solved[row["source"]] += 1
    assert all(
        solved[name] == generate.PER_DATASET
        for name in ("chain_sum", "products", "gcd", "letter_counting", "aiw")
    )
    assert solved["simple_equations"] >= generate.PER_DATASET // 2


def test_weekdays_are_those_of_the_calendar():
    checked = 0
    for row in REASONING:
        found = re.fullmatch(
            r"(?:What day of the week was|On which weekday did) (\w+ \d+, \d+)\b.*", row["question"]
        )
        if row["source"] == "calendar_arithmetic" and found:
            date = datetime.datetime.strptime(found[1], "%B %d, %Y")
            assert row["choices"][row["gold"]] == date.strftime("%A")
            checked += 1
    assert checked


# ---- marks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "batch_size"), [(torch.float32, 4), (torch.bfloat16, 1)])
def test_mc1_and_mc2_agree_with_single_forward_passes(tokenizer, dtype, batch_size):
    model = tiny_model(tokenizer).to(dtype)
    rows, items = benchmark.evaluate(
        model, tokenizer, ["enigma_truthfulness"], limit=6, batch_size=batch_size, seed=3
    )
    mc1, mc2 = scores(items, "mc1"), scores(items, "mc2")
    for item in mc1:
        doc = TRUTHFULNESS[item]
        context = f"Question: {doc['question']}\nAnswer:"
        logps = {
            c: log_probability(model, tokenizer, context, f" {c}") for c in doc["mc2_targets"]["choices"]
        }
        best = max(doc["mc1_targets"]["choices"], key=logps.get)
        assert mc1[item] == doc["mc1_targets"]["labels"][doc["mc1_targets"]["choices"].index(best)]
        right = [c for c, label in zip(*doc["mc2_targets"].values(), strict=True) if label]
        share = sum(math.exp(logps[c]) for c in right) / sum(math.exp(logp) for logp in logps.values())
        assert mc2[item] == pytest.approx(share, rel=1e-3, abs=1e-9)
    assert len(mc1) == 6
    row = rows.set_index("metric").loc["mc2"]
    assert row["value"] == pytest.approx(np.mean(list(mc2.values())))
    assert row["stderr"] == pytest.approx(np.std(list(mc2.values()), ddof=1) / math.sqrt(6))
    assert row["n"] == 6 and row["chance"] == pytest.approx(0.4)


def test_accuracies_agree_with_single_forward_passes(tokenizer):
    model = tiny_model(tokenizer)
    rows, items = benchmark.evaluate(model, tokenizer, ["enigma_reasoning"], limit=8, batch_size=3, seed=0)
    accuracy = scores(items, "acc")
    for item, value in accuracy.items():
        doc = REASONING[item]
        context = f"Question: {doc['question']}\nAnswer:"
        logps = [log_probability(model, tokenizer, context, f" {choice}") for choice in doc["choices"]]
        assert value == float(int(np.argmax(logps)) == doc["gold"])
    assert set(rows["metric"]) == {"acc", "acc_norm"} and (rows["chance"] == 0.25).all()


def test_format_prompts_carry_the_instruction_but_no_principle_and_are_marked_by_the_reward(
    tokenizer, monkeypatch
):
    seen = []
    model = tiny_model(tokenizer)
    generate_text = model.generate

    def watched(**named):
        seen.extend(tokenizer.batch_decode(named["input_ids"]))
        return generate_text(**named)

    monkeypatch.setattr(model, "generate", watched)
    rows, _ = benchmark.evaluate(model, tokenizer, ["enigma_format"], limit=2, batch_size=2, seed=0)
    asked = {
        json.loads(line)["question"]
        for line in QUESTIONS.read_text(encoding="utf-8").splitlines()
        if json.loads(line)["role"] == "heldout"
    }
    assert len(seen) == 2
    for text in seen:
        assert "Think between <reasoning>" in text and "principle" not in text
        assert text.endswith("<|im_start|>assistant\n")
        assert re.findall(r"Question: (.*?)<\|im_end\|>", text)[-1] in asked
    assert set(rows["metric"]) == {"graded_format", "strict_format"}
    assert (rows["value"] == 0).all() and (rows["chance"] == 0).all() and rows["at_chance"].all()


def test_format_marks_are_those_of_the_reward():
    from enigma.tasks.data import format_marks

    whole = "<reasoning>a</reasoning><answer>b</answer>"
    assert format_marks({}, [whole]) == {"graded_format": 1.0, "strict_format": 1.0}
    assert (
        format_marks({}, [whole[:-9]])["strict_format"]
        == 0.0
        < format_marks({}, [whole[:-9]])["graded_format"]
    )


def test_chance_is_rejected_only_by_what_lies_outside_its_range():
    coin = [1 / 4] * 100
    assert benchmark.at_chance([1.0] * 25 + [0.0] * 75, coin, 0.04)
    assert benchmark.at_chance([1.0] * 33 + [0.0] * 67, coin, 0.04)  # p = 0.08
    assert not benchmark.at_chance([1.0] * 36 + [0.0] * 64, coin, 0.04)  # p = 0.015
    assert not benchmark.at_chance([1.0] * 10 + [0.0] * 90, coin, 0.04)
    assert benchmark.at_chance([0.5, 0.3], [0.4, 0.4], 0.1) and not benchmark.at_chance(
        [0.5, 0.7], [0.4, 0.4], 0.1
    )
    assert benchmark.at_chance([0.9], [0.5], math.nan)
    assert benchmark.at_chance([0.0] * 5, [0.0] * 5, 0.0) and not benchmark.at_chance(
        [1.0] + [0.0] * 4, [0.0] * 5, 0.2
    )


# ---- isolation -----------------------------------------------------------------------------------------------------


def test_generators_modes_padding_bars_and_log_levels_are_put_back(tokenizer, capfd):
    import lm_eval.api.task

    model = with_adapter(tiny_model(tokenizer), seed=1)
    model.train()
    still = next(module for name, module in model.named_modules() if name.endswith("layers.0.mlp"))
    still.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    bar, level, side = lm_eval.api.task.tqdm, logging.getLogger("lm_eval").level, tokenizer.padding_side
    benchmark.evaluate(model, tokenizer, ["enigma_reasoning", "enigma_format"], limit=2, batch_size=2, seed=5)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[2])
    assert all(np.array_equal(new, old) for new, old in zip(np.random.get_state(), before[1], strict=True))
    assert (lm_eval.api.task.tqdm, logging.getLogger("lm_eval").level, tokenizer.padding_side) == (
        bar,
        level,
        side,
    )
    assert capfd.readouterr() == ("", "")


def test_generators_and_modes_are_put_back_after_a_failure(tokenizer):
    model = tiny_model(tokenizer).train()
    state = torch.get_rng_state()
    model.forward = lambda *arguments, **named: torch.rand(1) and 1 / 0
    with pytest.raises(ZeroDivisionError):
        benchmark.evaluate(model, tokenizer, ["enigma_reasoning"], limit=2, batch_size=2, seed=5)
    assert model.training and torch.equal(torch.get_rng_state(), state)


def test_disabled_adapter_scores_exactly_as_the_base_and_an_enabled_one_does_not(tokenizer):
    def score(model):
        return benchmark.evaluate(model, tokenizer, ["enigma_truthfulness"], limit=5, batch_size=4, seed=0)[1]

    base = score(tiny_model(tokenizer))
    policy = with_adapter(tiny_model(tokenizer), seed=2)
    with policy.disable_adapter():
        pd.testing.assert_frame_equal(score(policy), base, check_exact=True)
    assert not score(policy)["value"].equals(base["value"])


def test_items_are_a_seeded_sample_and_not_the_first():
    drawn = benchmark.draw_items(117, 20, seed=1)
    assert drawn == benchmark.draw_items(117, 20, seed=1) == sorted(set(drawn)) and len(drawn) == 20
    assert drawn != list(range(20)) and drawn != benchmark.draw_items(117, 20, seed=2)
    assert benchmark.draw_items(5, None, 0) == benchmark.draw_items(5, 9, 0) == list(range(5))


def test_every_model_is_asked_the_same_items(tokenizer):
    asked = [
        benchmark.evaluate(
            tiny_model(tokenizer, seed), tokenizer, ["enigma_reasoning"], limit=4, batch_size=8, seed=7
        )[1]
        for seed in (0, 1)
    ]
    drawn = benchmark.draw_items(len(REASONING), 4, seed=7)
    assert list(asked[0]["item"]) == list(asked[1]["item"]) == drawn * 2


def test_a_limit_draws_whole_items_of_a_task_that_asks_each_more_than_once(tokenizer):
    rows, items = benchmark.evaluate(
        tiny_model(tokenizer),
        tokenizer,
        ["enigma_robustness", "enigma_adherence"],
        limit=3,
        batch_size=8,
        seed=4,
    )
    for name, count, asked in (("enigma_robustness", 38, 7), ("enigma_adherence", 32, 2)):
        found = items[(items["task"] == name) & items["metric"].eq("acc")]
        assert sorted(set(found["item"])) == benchmark.draw_items(count, 3, seed=4)
        assert (found.groupby("item")["part"].nunique() == asked).all() and len(found) == 3 * asked
    assert (rows["n"] == 3).all()


def test_standard_error_counts_items_and_not_their_repetitions(tokenizer):
    rows, items = benchmark.evaluate(
        tiny_model(tokenizer), tokenizer, ["enigma_robustness"], limit=6, batch_size=8, seed=1
    )
    means = items.groupby("item")["value"].mean()
    assert rows["value"].item() == pytest.approx(means.mean())
    assert rows["stderr"].item() == pytest.approx(means.std(ddof=1) / math.sqrt(6))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_shared_prompts_give_lm_evals_own_log_probabilities(tokenizer, batch_size):
    """The packed forward against HFLM's own, one row for each choice."""
    from lm_eval.models.huggingface import HFLM

    model = with_adapter(tiny_model(tokenizer), seed=3)
    texts = [
        ("Question: a?\nAnswer:", " yes"),
        ("Question: a?\nAnswer:", " no, it is not"),
        ("b", " c"),
        ("b", " c"),
    ]
    texts += [
        ("a longer prompt than all of the others", " y" * 9),
        ("beyond what the model can hold " * 80, " y"),
    ]
    requests = [SimpleNamespace(args=pair) for pair in texts]
    named = dict(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=batch_size,
        softmax_dtype="float32",
    )
    expected, found = (
        kind(**named).loglikelihood(requests, disable_tqdm=True)
        for kind in (HFLM, benchmark._language_model())
    )
    assert [logp for logp, _ in found] == pytest.approx([logp for logp, _ in expected], abs=1e-4)


def test_a_prompt_is_read_once_for_all_of_its_choices(tokenizer):
    """At most four prompts in a forward: every prompt's tokens once, beside each choice's."""
    model, tokens = tiny_model(tokenizer), []
    forward = model.forward
    model.forward = lambda *arguments, **named: (
        tokens.append(named["input_ids"].numel()) or forward(*arguments, **named)
    )
    named = dict(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=4, softmax_dtype="float32"
    )
    requests = [(None, [5 + i, 6, 7, 8, 9], [20 + j, 21]) for i in range(10) for j in range(4)]
    found = benchmark._language_model()(**named)._loglikelihood_tokens(requests)
    assert len(found) == 40
    # A prompt goes without its last token, which each of its four choices of two tokens repeats.
    assert tokens == [4 * (4 + 4 * 3), 4 * (4 + 4 * 3), 2 * (4 + 4 * 3)]
    tokens.clear()
    benchmark.evaluate(model, tokenizer, ["enigma_reasoning"], limit=10, batch_size=4, seed=0)
    assert len(tokens) == 3  # for ten prompts, not for forty texts


def test_answers_are_the_likeliest_options(tokenizer):
    model = tiny_model(tokenizer)
    _, items = benchmark.evaluate(
        model, tokenizer, ["enigma_robustness", "enigma_format"], limit=2, batch_size=4, seed=0
    )
    assert items[items["task"] == "enigma_format"]["answer"].isna().all()
    rows = generate.read(generate.FOLDER / "robustness.jsonl")
    documents = {(row["item"], row["condition"]): row for row in rows}
    for row in items[items["task"] == "enigma_robustness"].itertuples():
        document = documents[row.item, row.part]
        logps = [
            log_probability(model, tokenizer, document["prompt"], f" {choice}")
            for choice in document["choices"]
        ]
        assert row.answer == int(np.argmax(logps)) and row.value == float(row.answer == document["gold"])


# ---- adherence -----------------------------------------------------------------------------------------------------

ADHERENCE = generate.read(generate.FOLDER / "adherence.jsonl")


def test_each_principle_of_the_default_pool_has_pairs_of_its_own():
    from enigma.data.principles import load_pool

    assert Counter(pair["principle"] for pair in ADHERENCE) == {
        principle.name: 2 for principle in load_pool("default")
    }
    assert all(principle.antithesis for principle in load_pool("default"))
    asked = [json.loads(line)["question"] for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    own = {normalise(pair["question"]) for pair in ADHERENCE}
    assert len(own) == len(ADHERENCE) and not own & {normalise(question) for question in asked}


def test_responses_of_a_pair_differ_but_not_in_length():
    lengths = {side: [len(" ".join(pair[side])) for pair in ADHERENCE] for side in ("follows", "breaks")}
    for pair, follows, breaks in zip(ADHERENCE, *lengths.values(), strict=True):
        assert pair["follows"] != pair["breaks"]
        if pair["principle"] != "be-brief":  # which is about length; the antithesis makes up for it
            assert 0.9 < follows / breaks < 1.1


def test_adherence_prompts_are_those_of_training_with_a_principle(tokenizer):
    from enigma.data.principles import load_pool
    from enigma.llm.prompts import messages
    from enigma.profile import load_profile

    default = load_profile("cpu").prompts
    task = benchmark.load_tasks(["enigma_adherence"], 0)["enigma_adherence"]
    pool = {principle.name: principle for principle in load_pool("default")}

    def render(chat):
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    documents = list(task.eval_docs)
    assert len(documents) == 2 * len(ADHERENCE)
    for document, pair in zip(documents[::2], ADHERENCE, strict=True):
        chat = messages(
            pair["question"], pool[pair["principle"]].text, default.placement, default.demonstration
        )
        assert task.fewshot_context(document, 0, chat_template=render) == render(chat)
        follows, breaks = document["choices"]
        assert pair["follows"][1] in follows and pair["breaks"][1] in breaks and document["gold"] == 0
    for principle, antithesis in zip(documents[::2], documents[1::2], strict=True):
        assert principle["choices"] == antithesis["choices"] and antithesis["gold"] == 1
        assert antithesis["principle"] == pool[principle["asked"]].antithesis


def test_a_model_that_does_not_read_the_principle_adheres_to_exactly_one_half(tokenizer):
    model = tiny_model(tokenizer)

    def by_length(self, requests, **_):
        """Log-probability by the continuation alone: the longer, the less."""
        return [(-float(len(continuation)), False) for _, _, continuation in requests]

    kind = type("Deaf", (benchmark._language_model(),), {"_loglikelihood_tokens": by_length})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "_language_model", lambda: kind)
        rows, items = benchmark.evaluate(
            model, tokenizer, ["enigma_adherence"], limit=None, batch_size=8, seed=0
        )
    assert rows["value"].tolist() == [0.5, 0.5] and rows["at_chance"].all() and (rows["chance"] == 0.5).all()
    table = benchmark.adherence(items.assign(arm="base", seed=pd.NA))
    assert (table["mean"] == 0.5).all() and len(table) == 2 * 17
    brief = table[(table["principle"] == "be-brief") & (table["metric"] == "acc")]
    assert brief[["under_principle", "under_antithesis", "pairs"]].values.tolist() == [[1.0, 0.0, 2]]


# ---- sample logs ---------------------------------------------------------------------------------------------------


def test_samples_are_logged_on_request_in_the_layout_of_lm_eval(tokenizer, tmp_path):
    from lm_eval.loggers import EvaluationTracker

    outputs = {}

    def watched(*arguments):
        outputs.update(run(*arguments))
        return outputs

    run = benchmark._run_harness
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "_run_harness", watched)
        _, items = benchmark.evaluate(
            tiny_model(tokenizer),
            tokenizer,
            ["enigma_reasoning", "enigma_format"],
            limit=3,
            batch_size=4,
            seed=0,
            log_samples=tmp_path / "samples",
        )
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "samples_enigma_format.jsonl",
        "samples_enigma_reasoning.jsonl",
    ]
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    tracker.date_id = "2025"  # set by lm-eval when it writes the scores
    for name in outputs:
        ours = generate.read(tmp_path / "samples" / f"samples_{name}.jsonl")
        tracker.save_results_samples(name, outputs[name]["samples"])
        (path,) = (tmp_path / "theirs").rglob(f"samples_{name}_*.jsonl")
        assert ours == sorted(generate.read(path), key=lambda sample: sample["doc_id"])
        assert [sample["doc_id"] for sample in ours] == sorted(set(items[items["task"] == name]["item"]))


def test_no_samples_are_logged_unasked(stage):
    profile, results, _ = stage
    benchmark.run(profile, results)
    assert not list(results.runs.rglob("samples*"))
    profile.benchmarks.log_samples, profile.hash = True, "1" * 16  # another text of the profile
    benchmark.run(profile, results)
    assert sorted(
        path.parent.parent.name for path in results.runs.rglob("samples_enigma_reasoning.jsonl")
    ) == ["base", "enigma_high-s0", "grpo-s0"]


# ---- the user's data folder ----------------------------------------------------------------------------------------


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """Made-up files in the layouts of TruthfulQA, GSM8K and GPQA."""
    rows = {"truthfulqa/multiple_choice.jsonl": [made_up_truthfulqa(i) for i in range(6)]}
    for split in ("train", "test"):
        rows[f"gsm8k/{split}.jsonl"] = [
            {"question": f"{i} plus 1?", "answer": f"{i}+1\n#### {i + 1}"} for i in range(8)
        ]
    for name, lines in rows.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(generate.dump(lines), encoding="utf-8")
    (tmp_path / "gpqa").mkdir()
    with (tmp_path / "gpqa" / "gpqa_main.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))])
        writer.writerows([f"Which, {i}?", f"right {i}", "one", "two", "three"] for i in range(6))
    monkeypatch.setenv("ENIGMA_DATA", str(tmp_path))
    return tmp_path


def made_up_truthfulqa(i: int) -> dict:
    def targets(*labels):
        return {"choices": [f"answer {i} {k}" for k in range(len(labels))], "labels": list(labels)}

    return {
        "question": f"What about {i}?",
        "mc1_targets": targets(1, 0, 0, 0),
        "mc2_targets": targets(1, 1, 0),
    }


def test_external_tasks_read_the_users_folder_under_their_own_names(tokenizer, data_folder):
    names = ["truthfulqa_mc1", "truthfulqa_mc2", "gpqa_main_zeroshot"]
    model = tiny_model(tokenizer)
    rows, items = benchmark.evaluate(model, tokenizer, names, limit=3, batch_size=4, seed=0)
    by_name = rows[rows["metric"] == "acc"].set_index("task")
    assert list(by_name.index) == names and (by_name["n"] == 3).all() and by_name["stderr"].notna().all()
    assert by_name["chance"].tolist() == pytest.approx([1 / 4, 2 / 3, 1 / 4])
    again = benchmark.evaluate(model, tokenizer, names, limit=3, batch_size=4, seed=0)
    pd.testing.assert_frame_equal(again[1], items, check_exact=True)


def test_external_mc2_is_the_share_of_the_right_choices(tokenizer, data_folder):
    from lm_eval.tasks._yaml_loader import load_yaml

    model = tiny_model(tokenizer)
    _, items = benchmark.evaluate(model, tokenizer, ["truthfulqa_mc2"], limit=2, batch_size=4, seed=0)
    shipped = load_yaml(benchmark._task_yaml("x", benchmark.EXTERNAL["truthfulqa_mc1"], None)["include"])
    primer = re.search(r"'(Q: .*?)'%}", shipped["doc_to_text"], re.DOTALL)[1]
    for item, value in scores(items, "acc").items():
        doc = made_up_truthfulqa(item)
        context = f"{primer}\n\nQ: {doc['question']}\nA:"
        logps = [
            log_probability(model, tokenizer, context, f" {choice}")
            for choice in doc["mc2_targets"]["choices"]
        ]
        share = np.exp(logps)[:2].sum() / np.exp(logps).sum()
        assert value == pytest.approx(share, rel=1e-3)


def test_gsm8k_is_generated_with_chance_zero_and_both_filters(tokenizer, data_folder):
    rows, _ = benchmark.evaluate(tiny_model(tokenizer), tokenizer, ["gsm8k"], limit=1, batch_size=1, seed=0)
    assert set(rows["metric"]) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert (rows["chance"] == 0).all()


@pytest.mark.parametrize("name", benchmark.GENERATED_CHOICE)
def test_gpqa_is_generated_and_its_answer_extracted(tokenizer, data_folder, name):
    """Six made-up questions, answered by somebody who sees the prompt, each in another way."""
    seen = []

    def generate_until(self, requests, **_):
        seen.extend(request.args[0] for request in requests)
        right = [re.search(r"\((.)\) right", text)[1] for text in seen]
        wrong = "A" if right[2] != "A" else "B"
        return [
            f"The answer is ({right[0]}).",
            f"So it must be ({right[1]})",
            f"The answer is ({wrong}).",
            "I do not know.",
            "",
            f"The answer is ({right[5]}).",
        ]

    kind = type("Scripted", (benchmark._language_model(),), {"generate_until": generate_until})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "_language_model", lambda: kind)
        rows, items = benchmark.evaluate(
            tiny_model(tokenizer), tokenizer, [name], limit=None, batch_size=1, seed=0
        )
    assert all(f"Which, {i}?" in text and "(D)" in text for i, text in enumerate(seen))
    row = rows.set_index("metric")
    assert scores(items, "exact_match,strict-match") == {0: 1, 1: 0, 2: 0, 3: 0, 4: 0, 5: 1}
    assert scores(items, "exact_match,flexible-extract") == {0: 1, 1: 1, 2: 0, 3: 0, 4: 0, 5: 1}
    # Guessing is right for a quarter of the texts that hold an answer: three, and four for the flexible filter.
    assert row["chance"].to_dict() == pytest.approx(
        {"exact_match,strict-match": 3 / 4 / 6, "exact_match,flexible-extract": 4 / 4 / 6}
    )
    assert items["answer"].isna().all()


def test_gpqa_answers_are_marked_by_the_order_in_which_they_were_asked(tokenizer, data_folder):
    """Who finds the right letter in the prompt is right every time. lm-eval shuffles anew at each look at the data."""

    def by_prompt(self, requests, **_):
        right = [re.search(r"(\(.\)) right", context)[1] for (context, _), _, _ in requests]
        return [
            (float(text.strip() == letter), False)
            for ((_, text), _, _), letter in zip(requests, right, strict=True)
        ]

    kind = type("Oracle", (benchmark._language_model(),), {"_loglikelihood_tokens": by_prompt})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "_language_model", lambda: kind)
        rows, _ = benchmark.evaluate(
            tiny_model(tokenizer), tokenizer, ["gpqa_main_zeroshot"], limit=None, batch_size=1, seed=0
        )
    assert rows["value"].tolist() == [1.0, 1.0]


def test_order_of_gpqa_answers_depends_on_the_seed_alone(data_folder):
    def order(seed):
        with benchmark._quiet():
            return list(
                benchmark.load_tasks(["gpqa_main_zeroshot"], seed)["gpqa_main_zeroshot"].eval_docs["answer"]
            )

    random.seed(99)
    first = order(0)
    assert order(0) == first and any(order(seed) != first for seed in (1, 2, 3))


def test_missing_file_is_named(data_folder):
    (data_folder / "gpqa" / "gpqa_main.csv").unlink()
    with pytest.raises(InputError, match="gpqa_main.csv: found no such file.*Correct Answer"):
        benchmark.check_tasks(["gpqa_main_zeroshot"])


@pytest.mark.parametrize("text", ['{"question": "only"}\n', "no json\n", ""])
def test_wrong_layout_is_named(data_folder, text):
    (data_folder / "truthfulqa" / "multiple_choice.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"multiple_choice\.jsonl: .*mc1_targets.*mend"):
        benchmark.check_tasks(["truthfulqa_mc1"])


def test_damage_further_down_is_named(data_folder):
    with (data_folder / "truthfulqa" / "multiple_choice.jsonl").open("a") as file:
        file.write('{"question": ')
    with pytest.raises(InputError, match=r"multiple_choice\.jsonl: line \d+: broken JSON"):
        benchmark.check_tasks(["truthfulqa_mc2"])


def test_data_folder_that_is_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("ENIGMA_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="ENIGMA_DATA: found '.*nowhere'; expected a folder"):
        benchmark.check_tasks(["truthfulqa_mc1"])


def test_unreachable_hub_is_told_with_the_remedy(monkeypatch):
    import datasets

    def unreachable(*arguments, **named):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match="truthfulqa_mc1.*no route.*set ENIGMA_DATA"):
        benchmark.check_tasks(["truthfulqa_mc1"])


def test_unknown_task_is_told_with_the_known_ones():
    with pytest.raises(
        InputError, match="'truthfulness'; expected one of enigma_reasoning, .*gpqa_main_zeroshot"
    ):
        benchmark.check_tasks(["enigma_format", "truthfulness"])


# ---- differences ---------------------------------------------------------------------------------------------------


def frame(arm, seed, values, task="t", metric="acc") -> pd.DataFrame:
    named = {
        "arm": arm,
        "seed": seed,
        "task": task,
        "item": range(len(values)),
        "metric": metric,
        "value": values,
    }
    return pd.DataFrame(named).astype({"seed": "Int64", "value": float})


def test_pairs_are_matched_by_item_and_tested_by_mcnemar():
    base = frame("base", None, [0] * 8 + [1] * 4)
    better = frame("grpo", 0, [1] * 6 + [0] * 2 + [1] * 3 + [0]).sample(frac=1, random_state=1)
    row = benchmark.differences(pd.concat([base, better]), seed=0).iloc[0]
    assert (row["versus"], row["n"], row["difference"]) == ("base", 12, pytest.approx(5 / 12))
    # Six items gained, one lost: two-sided exact McNemar is twice the binomial tail.
    assert row["p_value"] == pytest.approx(2 * (1 + 7) / 2**7)
    assert row["low"] < row["difference"] < row["high"]


def test_arms_are_compared_with_base_and_with_grpo_of_the_same_seed():
    values = {"grpo": {0: [0, 0, 1], 1: [1, 1, 1]}, "enigma_high": {0: [1, 1, 1], 1: [1, 1, 0]}}
    frames = [frame(arm, seed, v) for arm, runs in values.items() for seed, v in runs.items()]
    table = benchmark.differences(pd.concat([frame("base", None, [0, 0, 0]), *frames]), seed=0)
    found = {(r.arm, r.seed, r.versus): r.difference for r in table.itertuples()}
    assert found == pytest.approx(
        {
            ("grpo", 0, "base"): 1 / 3,
            ("grpo", 1, "base"): 1.0,
            ("enigma_high", 0, "base"): 1.0,
            ("enigma_high", 0, "grpo"): 2 / 3,
            ("enigma_high", 1, "base"): 2 / 3,
            ("enigma_high", 1, "grpo"): -1 / 3,
        }
    )


def test_equal_scores_have_no_difference():
    table = benchmark.differences(
        pd.concat([frame("base", None, [0.2, 0.7]), frame("grpo", 0, [0.2, 0.7])]), seed=0
    )
    assert table[["difference", "low", "high", "p_value", "p_holm"]].iloc[0].tolist() == [0, 0, 0, 1, 1]


def test_no_arm_but_base_gives_an_empty_table():
    assert benchmark.differences(frame("base", None, [0, 1]), seed=0).empty


def test_shares_are_tested_by_swapping_pairs():
    # Five positive differences: of 32 sign patterns two are as extreme.
    assert paired_p_value(np.array([0.5, 0.6, 0.7, 0.8, 0.9]), np.full(5, 0.1), seed=0) == pytest.approx(
        2 / 32
    )
    rng = np.random.default_rng(0)
    shifted = rng.random(200)
    assert paired_p_value(shifted + 0.1 * rng.random(200), shifted, seed=0) < 0.001


def test_one_pair_says_nothing():
    assert paired_p_value(np.array([0.2]), np.array([0.7]), seed=0) == 1.0
    assert paired_p_value(np.array([0.0]), np.array([1.0]), seed=0) == 1.0


def test_holm_by_hand():
    corrected = holm(np.array([0.04, 0.01, 0.03, 0.6]))
    assert corrected.tolist() == pytest.approx([0.09, 0.04, 0.09, 0.6])
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]


def test_repetitions_of_an_item_count_once():
    """Seven conditions of four items are four pairs, not twenty-eight."""
    once = pd.concat([frame("base", None, [0.2, 0.4, 0.1, 0.3]), frame("grpo", 0, [0.5, 0.6, 0.4, 0.9])])
    thrice = pd.concat([once.assign(value=once["value"] + shift) for shift in (-0.1, 0.0, 0.1)])
    pd.testing.assert_frame_equal(
        benchmark.differences(thrice, seed=0), benchmark.differences(once, seed=0), rtol=1e-9
    )


# ---- the stage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(tokenizer, tmp_path, monkeypatch):
    """A profile of two arms with saved adapters, and a list of what was loaded."""
    from peft import PeftModel

    profile = SimpleNamespace(
        name="tiny",
        hash="0" * 16,
        text="",
        model=SimpleNamespace(source="random", id=None),
        benchmarks=SimpleNamespace(
            tasks=["enigma_reasoning", "enigma_truthfulness"], limit=4, batch_size=4, log_samples=False
        ),
        seeds=SimpleNamespace(initialisation=0, evaluation=1, bootstrap=2, model_dump=dict),
        runs=lambda: [("grpo", 0), ("enigma_high", 0)],
    )
    results = Results(profile, tmp_path / "results")
    for seed, (arm, run) in enumerate(profile.runs(), start=1):
        with_adapter(tiny_model(tokenizer), seed).save_pretrained(results.run_folder(arm, run) / "adapter")
    loaded = []

    def load_policy(spec, adapter, seed=0):
        loaded.append(adapter.parent.name if adapter else "base")
        model = tiny_model(tokenizer, seed)
        return (PeftModel.from_pretrained(model, str(adapter)) if adapter else model), tokenizer

    monkeypatch.setattr("enigma.llm.loading.load_policy", load_policy)
    return profile, results, loaded


def test_stage_writes_its_tables_in_the_order_of_the_arms(stage):
    profile, results, loaded = stage
    tables = benchmark.run(profile, results)
    assert loaded == ["base", "grpo-s0", "enigma_high-s0"]
    written = results.read_table("benchmarks")
    assert list(written.columns) == [
        "arm",
        "seed",
        "task",
        "metric",
        "value",
        "stderr",
        "n",
        "chance",
        "at_chance",
    ]
    assert list(dict.fromkeys(written["arm"])) == ["base", "grpo", "enigma_high"] and len(written) == 12
    assert written[written["arm"] == "base"]["seed"].isna().all()
    items = results.read_table("benchmark_items")
    assert list(items.columns) == ["arm", "seed", "task", "part", "item", "metric", "value", "answer"]
    differences = results.read_table("benchmark_differences")
    assert len(differences) == 12 and set(differences["versus"]) == {"base", "grpo"}
    assert list(differences.columns[-3:]) == ["n", "p_value", "p_holm"]
    assert tables["robustness"].empty and tables["adherence"].empty  # no such task in this profile
    assert (tables["benchmark_speed"]["items"] == 8).all() and (
        tables["benchmark_speed"]["items_per_second"] > 0
    ).all()


def test_stage_resumes_and_never_reuses_scores_of_other_weights(stage, tokenizer):
    profile, results, loaded = stage
    first = benchmark.run(profile, results)
    again = benchmark.run(profile, results)
    assert len(loaded) == 3
    for name, table in first.items():
        pd.testing.assert_frame_equal(again[name], table, check_exact=True)
    with_adapter(tiny_model(tokenizer), seed=9).save_pretrained(results.run_folder("grpo", 0) / "adapter")
    changed = benchmark.run(profile, results)
    assert loaded[3:] == ["grpo-s0"]
    assert not changed["benchmark_items"]["value"].equals(first["benchmark_items"]["value"])
    (results.runs / "base" / "benchmark.json").write_text("{damaged")
    profile.seeds.evaluation += 1
    benchmark.run(profile, results)
    assert loaded[4:] == ["base", "grpo-s0", "enigma_high-s0"]


def test_scores_belong_to_the_files_that_items_come_from(tmp_path, monkeypatch, data_folder):
    package = tmp_path / "enigma"
    shutil.copytree(benchmark.TASKS.parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(benchmark, "TASKS", package / "tasks")
    places = {
        "tasks/robustness.jsonl": "enigma_robustness",
        "tasks/enigma_adherence.yaml": "enigma_adherence",
        "pools/default.yaml": "enigma_adherence",
        "data/questions.jsonl": "enigma_format",
    }
    for file, task in places.items():
        before = benchmark._data_hash(task)
        with (package / file).open("a") as changed:
            changed.write("\n")
        assert benchmark._data_hash(task) != before
    before = benchmark._data_hash("gpqa_main_generative_n_shot")
    with (data_folder / "gpqa" / "gpqa_main.csv").open("a") as changed:
        changed.write("Which, 6?,right 6,one,two,three\n")
    assert benchmark._data_hash("gpqa_main_generative_n_shot") != before


def test_stage_asks_for_the_training_notebook_before_anything_is_loaded(stage):
    profile, results, loaded = stage
    (results.run_folder("enigma_high", 0) / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="enigma_high-s0.*02_train"):
        benchmark.run(profile, results)
    assert loaded == []
