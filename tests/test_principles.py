"""The built-in pool's promises, and every refusal of a faulty file: with file, entry and reason."""

from pathlib import Path

import pytest
import yaml

from enigma.data.principles import Principle, load_pool
from enigma.data.text import find_unsafe
from enigma.errors import InputError


@pytest.fixture
def write(tmp_path):
    def write(content: str) -> Path:
        path = tmp_path / "pool.yaml"
        path.write_bytes(content.encode())
        return path

    return write


def entries(*values) -> str:
    return yaml.safe_dump({"principles": list(values)}, allow_unicode=True)


def test_default_pool_keeps_its_promises():
    pool = load_pool("default")
    assert len(pool) >= 16
    assert len({p.family for p in pool}) >= 6
    for p in pool:
        words, opposite = len(p.text.split()), len(p.antithesis.split())
        assert 8 <= words <= 25 and 8 <= opposite <= 25, p.name
        assert abs(words - opposite) <= 3, f"{p.name}: length would tell the principle from its antithesis"
        assert p.text.count(".") == 1 and p.text.endswith("."), f"{p.name}: one sentence"
        assert p.source.startswith("written for this project; in the spirit of "), p.name
    texts = [text.casefold() for p in pool for text in (p.text, p.antithesis)]
    assert len(set(texts)) == len(texts)


def test_whitespace_and_byte_order_mark(write):
    text = "\ufeffprinciples:\r\n- name: a\r\n  text: |\r\n    Be  brief\r\n    always.\r\n  antithesis:\r\n"
    assert load_pool(write(text)) == [Principle("a", "Be brief always.")]


GOOD = {"name": "good", "text": "Be brief."}

FAULTS = {
    "not a mapping": ("- a\n- b\n", ["a list", "principles:"]),
    "no list": ("principles: 3\n", ["a number"]),
    "empty list": ("principles: []\n", ["empty"]),
    "unknown top key": ("principle: []\n", ["'principle'"]),
    "entry not a mapping": (entries(GOOD, "Be kind."), ["entry 2", "a string"]),
    "unknown key": (entries({**GOOD, "anti_thesis": "Be long."}), ["entry 1", "'good'", "'anti_thesis'"]),
    "missing name": (entries({"text": "Be brief."}), ["entry 1", "name: missing"]),
    "missing text": (entries({"name": "a"}), ["entry 1 ('a')", "text: missing"]),
    "empty antithesis": (entries({**GOOD, "antithesis": " \n "}), ["antithesis: empty"]),
    "text is true": ("principles: [{name: a, text: yes}]\n", ["true/false", "quotes"]),
    "name is a number": ("principles: [{name: 7, text: Be brief.}]\n", ["name: found a number"]),
    "name with capitals": (entries({"name": "Be Brief", "text": "Be brief."}), ["a-z"]),
    "name is read as missing": (entries({"name": "nan", "text": "Be brief."}), ["'nan'", "none of nan"]),
    "name too long": (entries({"name": "a" * 41, "text": "Be brief."}), ["at most 39"]),
    "same name": (entries(GOOD, GOOD | {"text": "Be kind."}), ["entry 2", "name: the same as entry 1"]),
    "same text": (
        entries(GOOD, {"name": "b", "text": "be\n BRIEF."}),
        ["2 ('b')", "text: the same as entry 1"],
    ),
    "own antithesis": (entries({**GOOD, "antithesis": "BE  brief."}), ["entry 1", "antithesis: equal"]),
    "too long": (entries({"name": "a", "text": "x" * 501}), ["501 characters", "500"]),
    "control character": ('principles: [{name: a, text: "Be\\x07brief."}]\n', ["text", "U+0007"]),
    "hidden tags": ('principles: [{name: a, text: "Be brief.\\U000E0041"}]\n', ["text", "U+E0041"]),
    "lone surrogate": ('principles: [{name: a, text: "Be \\ud800 brief."}]\n', []),
    "format tag": (entries({"name": "a", "text": "Write </Answer> at once."}), ["</answer>"]),
    "token in source": (entries({**GOOD, "source": "me<|im_end|>"}), ["source", "<|im_end|>"]),
    "too large": ("#" * 200_001, ["200 kB"]),
}


@pytest.mark.parametrize("content, expected", FAULTS.values(), ids=FAULTS.keys())
def test_refusals(write, content, expected):
    path = write(content)
    with pytest.raises(InputError) as error:
        load_pool(path)
    message = str(error.value)
    assert message.startswith(f"{path}:") and "\n" not in message and message.isprintable()
    assert len(message) < 400 + len(str(path))
    for part in expected:
        assert part in message


CHAT_TOKENS = (
    "<|im_start|> <|im_end|> <|endoftext|> <|eot_id|> <|start_header_id|> <start_of_turn> <end_of_turn> <bos> <eos> "
    "<s> </s> [INST] [/INST] <<SYS>> <|user|> <｜User｜> <|turn> <turn|> ＜|im_start|＞ [gMASK] <S>"
)


@pytest.mark.parametrize("token", CHAT_TOKENS.split())
def test_chat_tokens_are_refused(write, token):
    with pytest.raises(InputError, match=r"entry 1 \('a'\): text: contains the chat-template token"):
        load_pool(write(entries({"name": "a", "text": f"Be brief. {token} system"})))


def test_ordinary_text_is_safe():
    emoji = "Ça va? \u2713 \U0001f468\u200d\U0001f33e"
    for text in ("a < b and b > c, a|b", "x |> f(y) <| z", "An array[3], <b>bold</b>", emoji):
        assert find_unsafe(text) is None, text


@pytest.mark.parametrize("where", ["no-such-pool", ".", "x" * 5000, "a\0b"])
def test_no_such_file(where):
    with pytest.raises(InputError, match="default"):
        load_pool(where)
