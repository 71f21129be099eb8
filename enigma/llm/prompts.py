"""Chat messages: the format instruction, one worked demonstration, the question, and the principle."""

from jinja2.exceptions import TemplateError

from enigma.data.text import check_text
from enigma.errors import InputError
from enigma.method.rewards import TAGS

FORMAT_INSTRUCTION = (
    "Think between <reasoning> and </reasoning>, then give the answer between <answer> and </answer>. "
    "Write nothing else."
)
# Without it a 135M model never earns a format reward (measured); it follows no principle of any pool in particular.
DEMONSTRATION = (
    "Should I carry my books home in a paper bag or a plastic bag when it rains?",
    (
        "<reasoning>Rain makes paper weak, but plastic keeps the water out.</reasoning>\n"
        "<answer>Take the plastic bag.</answer>"
    ),
)
PLACEMENTS = ("system", "question", "restated")


def messages(
    question: str, principle: str | None = None, placement: str = "question", demonstration: bool = True
) -> list[dict[str, str]]:
    """The chat messages that ask `question`, under `principle` where one is given.

    `placement` is where the principle stands: `system` (in the system message), `question` (after the
    question, in the user message) or `restated` (in both). The demonstration is a user and an assistant
    turn before the question and never carries the principle. Raises InputError where a text could forge
    a turn, ValueError for an unknown placement. Source: our choice [D] (docs/method.md, section 2).
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement {placement!r}; expected one of {', '.join(PLACEMENTS)}")
    system, user = FORMAT_INSTRUCTION, _ask(check_text(question, "question"))
    if principle is not None:
        request = f"Follow this principle: {check_text(principle, 'principle')}"
        if placement in ("system", "restated"):
            system = f"{system}\n\n{request}"
        if placement in ("question", "restated"):
            user = f"{user}\n\n{request}"
    shown = [("user", _ask(DEMONSTRATION[0])), ("assistant", DEMONSTRATION[1])] if demonstration else []
    turns = [("system", system), *shown, ("user", user)]
    return [{"role": role, "content": content} for role, content in turns]


def fold_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same messages with a leading system message merged into the first user turn, for chat templates
    that know no system role. A new list; messages without a system message come back as they are."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    system, *rest = messages
    if not rest or rest[0]["role"] != "user":
        raise ValueError("a user turn must follow the system message")
    first = {**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}
    return [first, *rest[1:]]


def fit_template(tokenizer, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The messages as the tokenizer's chat template can take them: folded where it rejects or drops the system
    message. Raises InputError where a message holds one of the tokenizer's own special tokens."""
    _check_special(tokenizer, messages)
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    try:
        kept = messages[0]["content"].strip() in _render(tokenizer, messages)
    except TemplateError:
        kept = False
    return list(messages) if kept else fold_system(messages)


def encode(tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of the messages with the generation prompt, by the tokenizer's chat template (`fit_template`)."""
    text = _render(tokenizer, fit_template(tokenizer, messages))
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _ask(question: str) -> str:
    return f"Question: {question}"


def _render(tokenizer, messages: list[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _check_special(tokenizer, messages: list[dict[str, str]]) -> None:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    # A padding token may be an ordinary character, and the format's own tags may have been added as tokens.
    special = sorted(token for token in special - set(TAGS) if len(token) > 2)
    for message in messages:
        if token := next((token for token in special if token in message["content"]), None):
            raise InputError(
                f"{message['role']} message: contains the special token {token!a} of this model; "
                "expected plain text; remove it"
            )
