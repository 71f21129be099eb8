"""The format reward: is a completion `<reasoning>...</reasoning>` and then `<answer>...</answer>`?

Nothing here judges an answer. Everything is plain text in, number out, in time linear in the text:
`str.count` and `str.find`, no backtracking pattern.
"""

OPEN_REASONING, CLOSE_REASONING = "<reasoning>", "</reasoning>"
OPEN_ANSWER, CLOSE_ANSWER = "<answer>", "</answer>"
TAGS = (OPEN_REASONING, CLOSE_REASONING, OPEN_ANSWER, CLOSE_ANSWER)


def strict_format(text: str) -> bool:
    """Whether `text` has the whole format: each tag once, in order, something visible in both bodies, and
    nothing but whitespace outside. Source: secondary account [S] (docs/method.md, section 3)."""
    return graded_format(text) == 1.0


def graded_format(text: str) -> float:
    """Part marks for the format, in [0, 1], a multiple of 1/8; 1 if and only if `strict_format`.

    1/8 for each of the four tags that occurs exactly once (a repeated tag loses its mark); 1/4 for a
    reasoning body that shows something and is closed before the answer opens; 1/4 for an answer body
    that shows something, with all tags in order and nothing but whitespace outside the two elements
    (text after the answer loses it). Source: our choice [D] (docs/method.md, eq. 1): a small model that is
    only scored strictly may never see a reward.
    """
    once = [text.count(tag) == 1 for tag in TAGS]
    return 0.125 * sum(once) + 0.25 * _reasoning_mark(text, once) + 0.25 * _answer_mark(text, once)


def reasoning_span(text: str) -> tuple[int, int]:
    """Characters (start, end) of the reasoning span of a completion; `start` is always 0.

    The span is everything up to the end of the tag that ends the reasoning: `</reasoning>`, or
    `<answer>` where the answer opens with the reasoning unclosed; where neither occurs it is the
    whole completion. It is a prefix whose end shows in the prefix itself (a stopping time), so that
    the sum of its token log-probabilities is exactly its log-probability, and the posterior over
    principles is exact. For that, count the token in which the span ends as a whole, and the
    end-of-turn token where the span is the whole completion. Source: our choice [D] (docs/method.md, section 6).
    """
    ends = [text.find(tag) + len(tag) for tag in (CLOSE_REASONING, OPEN_ANSWER) if tag in text]
    return 0, min(ends, default=len(text))


def graded_format_reward(completions, **kwargs) -> list[float]:
    """`graded_format` as a TRL reward function. `completions` holds strings or lists of messages
    (the last message counts); other columns are ignored."""
    return [graded_format(_content(completion)) for completion in completions]


def strict_format_reward(completions, **kwargs) -> list[float]:
    """`strict_format` as a TRL reward function, 0.0 or 1.0; arguments as `graded_format_reward`."""
    return [float(strict_format(_content(completion))) for completion in completions]


def _reasoning_mark(text: str, once: list[bool]) -> bool:
    if not (once[0] and once[1]):
        return False
    opened, closed, answer = (text.find(tag) for tag in TAGS[:3])
    return (answer == -1 or closed < answer) and _shows(text[opened + len(OPEN_REASONING) : closed])


def _answer_mark(text: str, once: list[bool]) -> bool:
    if not all(once):
        return False
    at = [text.find(tag) for tag in TAGS]
    if at != sorted(at):
        return False
    outside = text[: at[0]] + text[at[1] + len(CLOSE_REASONING) : at[2]] + text[at[3] + len(CLOSE_ANSWER) :]
    return not outside.strip() and _shows(text[at[2] + len(OPEN_ANSWER) : at[3]])


def _shows(body: str) -> bool:
    """Whether a body has a visible character: zero-width characters would buy the mark with nothing."""
    return any(character.isprintable() and not character.isspace() for character in body)


def _content(completion) -> str:
    if isinstance(completion, str):
        return completion
    return (completion[-1]["content"] or "") if completion else ""
