"""A reward of your own has TRL's signature: lists in, one number for each completion out."""


def short(completions, **columns):
    """1 for an empty text, falling to 0 at 200 characters."""
    return [max(0.0, 1 - len(completion[0]["content"]) / 200) for completion in completions]
