"""Text from outside: the safety check, and the normal form in which duplicates are looked for."""

import re
import unicodedata

from enigma.errors import InputError

# Turn and sequence markers of the usual chat templates (ChatML, Llama 2 to 4, Gemma 2 to 4, Mistral, DeepSeek, GLM).
# `prompts.fit_template` checks the special tokens of the tokenizer in use as well.
_CHAT_TOKEN = re.compile(
    r"<\|[^|<>\s]{1,64}\|?>|<[^|<>\s]{1,64}\|>"
    r"|</?(?:s|bos|eos|pad|unk|mask|sop|start_of_turn|end_of_turn|start_of_image|end_of_image)>"
    r"|<</?SYS>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK)\]",
    re.IGNORECASE,
)
# Other invisible characters would hide text from a reader or reorder it: the text shown is the text that the model reads.
# Joiners are a part of some scripts and of emoji.
_ALLOWED = frozenset("\n\r\t\u200c\u200d")


def normalise(text: str) -> str:
    """Compatibility form, case folded, runs of whitespace as one space: equal for texts that read alike."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def find_unsafe(text: str) -> str | None:
    """What makes `text` unfit for a prompt, as a phrase, or None.

    Unfit are control characters (other than line breaks and tabs), invisible ones (other than joiners), lone
    surrogates, and chat-template tokens, also in their full-width spelling: with them, data
    could forge a turn of the conversation.
    """
    for character in text:
        if character in _ALLOWED:
            continue
        if unicodedata.category(character) in ("Cc", "Cf", "Cs"):
            return f"control character U+{ord(character):04X}"
    token = _CHAT_TOKEN.search(unicodedata.normalize("NFKC", text))
    return f"chat-template token {token.group()!a}" if token else None


def check_text(text: str, where: str) -> str:
    """`text` itself where it is safe; InputError, naming `where`, where it is not."""
    if reason := find_unsafe(text):
        raise InputError(f"{where}: contains the {reason}; expected plain text; remove it")
    return text
