"""Chat messages: where the principle stands, and that no text from outside can forge a turn."""

from types import SimpleNamespace

import pytest

from enigma.data.principles import load_pool
from enigma.data.questions import load_questions
from enigma.errors import InputError
from enigma.llm import prompts
from enigma.llm.loading import load_tokenizer
from enigma.method.rewards import strict_format

BUILT_IN, ROLES = SimpleNamespace(source="builtin"), {"train": 112, "select": 48, "heldout": 48}
QUESTION, PRINCIPLE = "What should I try first?", "Be brief."

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REJECTS_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
)
DROPS_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")


@pytest.fixture(scope="module")
def tokenizer():
    """The embedded model's, which is a byte-level one: any text survives, and the markers are single tokens."""
    return load_tokenizer(SimpleNamespace(source="embedded", revision=None))


@pytest.mark.parametrize(
    "placement, in_system, in_user", [("system", 1, 0), ("question", 0, 1), ("restated", 1, 1)]
)
@pytest.mark.parametrize("demonstration", [True, False])
def test_placement(placement, in_system, in_user, demonstration):
    built = prompts.messages(QUESTION, PRINCIPLE, placement, demonstration)
    texts = [message["content"] for message in built]
    roles = [message["role"] for message in built]
    assert roles == ["system", *(["user", "assistant"] if demonstration else []), "user"]
    assert texts[0].startswith(prompts.FORMAT_INSTRUCTION)
    assert texts[-1].startswith(f"Question: {QUESTION}")
    expected = [in_system, *([0, 0] if demonstration else []), in_user]
    assert [text.count(PRINCIPLE) for text in texts] == expected


def test_without_a_principle_placement_changes_nothing():
    built = [prompts.messages(QUESTION, None, placement) for placement in prompts.PLACEMENTS]
    assert built[0] == built[1] == built[2]
    assert built[0][0]["content"] == prompts.FORMAT_INSTRUCTION
    assert "principle" not in str(built[0]).lower()


def test_the_demonstration_is_well_formed_and_neutral():
    question, answer = prompts.DEMONSTRATION
    assert strict_format(answer)
    asked = {text for role, count in ROLES.items() for text in load_questions(BUILT_IN, role, count, 0)}
    assert question not in asked
    assert not any(p.text in question + answer for p in load_pool("default"))


def test_unknown_placement():
    with pytest.raises(ValueError, match="placement 'beside'"):
        prompts.messages(QUESTION, PRINCIPLE, "beside")


def test_fold_system():
    built = prompts.messages(QUESTION, PRINCIPLE, "system")
    before = [dict(m) for m in built]
    folded = prompts.fold_system(built)
    assert [m["role"] for m in folded] == ["user", "assistant", "user"]
    assert folded[0]["content"] == f"{built[0]['content']}\n\n{built[1]['content']}"
    assert folded[1:] == built[2:] and built == before
    assert prompts.fold_system(folded) == folded and prompts.fold_system([]) == []
    with pytest.raises(ValueError, match="user turn"):
        prompts.fold_system(built[:1])


@pytest.mark.parametrize("placement", prompts.PLACEMENTS)
def test_encode_is_the_chat_template(placement, tokenizer):
    built = prompts.messages(QUESTION, PRINCIPLE, placement)
    ids = prompts.encode(tokenizer, built)
    assert ids == tokenizer.apply_chat_template(built, add_generation_prompt=True, return_dict=False)
    assert all(type(token) is int for token in ids)
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids.count(start) == len(built) + 1, "one marker a turn and one for the completion"
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("template", [REJECTS_SYSTEM, DROPS_SYSTEM], ids=["rejects", "drops"])
def test_encode_folds_where_there_is_no_system_role(template, tokenizer, monkeypatch):
    built = prompts.messages(QUESTION, PRINCIPLE, "restated")
    assert prompts.fit_template(tokenizer, built) == built
    monkeypatch.setattr(tokenizer, "chat_template", template)
    text = tokenizer.decode(prompts.encode(tokenizer, built))
    assert text.count(PRINCIPLE) == 2 and text.count(prompts.FORMAT_INSTRUCTION) == 1
    assert prompts.fit_template(tokenizer, built) == prompts.fold_system(built)


def test_the_embedded_tokenizer_sees_every_question_and_principle_as_plain_text(tokenizer):
    pool = load_pool("default")
    markers = set(tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]))
    for role, count in ROLES.items():
        for i, question in enumerate(load_questions(BUILT_IN, role, count, 0)):
            principle = pool[i % len(pool)].text
            ids = prompts.encode(tokenizer, prompts.messages(question, principle))
            said = f"Question: {question}\n\nFollow this principle: {principle}<|im_end|>"
            assert said in tokenizer.decode(ids)
            # Two markers for each of four turns, and one to go on.
            assert sum(token in markers for token in ids) == 9
            assert len(ids) < 180
    with pytest.raises(InputError, match="special token '<repo_name>'"):
        prompts.encode(tokenizer, prompts.messages("What is <repo_name> for?"))
