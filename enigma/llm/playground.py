"""Models side by side on one question: what each writes, and which principle can be read in it."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from enigma.errors import InputError
from enigma.llm import prompts
from enigma.llm.loading import load_policy
from enigma.llm.matched import score
from enigma.llm.states import greedy_completions

UNTRAINED = "untrained"


def published(folder: Path, names: Sequence[str]) -> dict[str, Path | None]:
    """{model: folder of its adapter} of a reference's `adapters` folder, the untrained model (None) first.

    Raises InputError where one of `names`, such as grpo-s0, is not there.
    """
    missing = [name for name in names if not (folder / name / "adapter_config.json").is_file()]
    if missing:
        raise InputError(
            f"{folder.parent.name}/{folder.name}: found no adapter {', '.join(missing)}; expected those of published results; "
            "train some of your own with `enigma run` and name their folders"
        )
    return {UNTRAINED: None, **{name: folder / name for name in names}}


def side_by_side(
    spec,
    adapters: Mapping[str, Path | None],
    question: str,
    principle: str,
    others: Sequence[str],
    style: dict,
    max_tokens: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """What each model answers, greedily, to `question` under `principle`, and which principle is read in the answer.

    Args:
        spec: a profile's model. adapters: {name: folder of an adapter, None for the untrained model}.
        others: texts of the principles that could have been meant instead. style: placement and demonstration.

    Returns:
        A row for each model: `answer`, and for each principle's text its posterior (eq. 9), in [0, 1]. The reader is the
        untrained model for all of them, so that no code that only a trained model knows counts.
    """
    candidates = list(dict.fromkeys([principle, *others]))
    rows = {}
    for name, adapter in adapters.items():
        model, tokenizer = load_policy(spec, adapter, seed)
        asked = [prompts.encode(tokenizer, prompts.messages(question, text, **style)) for text in candidates]
        [ids] = greedy_completions(model, tokenizer, asked[:1], max_tokens, 1)
        with contextlib.nullcontext() if adapter is None else model.disable_adapter():
            _, [logps] = score(model, asked, [ids], torch.tensor([len(ids)]))
        posterior = torch.softmax(torch.tensor(logps, dtype=torch.float64), 0).tolist()
        answer = tokenizer.decode(ids, skip_special_tokens=True)
        rows[name] = {"answer": answer, **dict(zip(candidates, posterior, strict=True))}
    return pd.DataFrame.from_dict(rows, orient="index")
