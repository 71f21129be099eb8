"""What stage 4 reads of a model: states of the same tokens, with and without its adapter, and under principles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from enigma.method import geometry as measures
from enigma.record.progress import track

MAX_TOKENS = 384


@dataclass
class Material:
    """What every model reads: token ids, made once from the untrained model."""

    prompts: list[list[int]]
    completions: list[list[int]]
    told: list[list[list[int]]]  # principle -> prompts [::told_step] with that principle
    told_step: int
    picked: list[np.ndarray]  # token positions kept of each completion
    prefix: list[int]
    layers: list[int]
    batch_size: int

    @property
    def owner(self) -> np.ndarray:
        """The prompt of each kept token, (n,)."""
        return np.repeat(np.arange(len(self.picked)), [len(positions) for positions in self.picked])


@dataclass
class Clouds:
    means: np.ndarray  # (prompts, layers, d): mean over the completion's tokens
    tokens: np.ndarray  # (layers, n, d): the kept tokens


def pick_tokens(completions: list[list[int]], seed: int) -> list[np.ndarray]:
    each = max(1, MAX_TOKENS // len(completions))
    limits = [each if i < MAX_TOKENS else 0 for i in range(len(completions))]
    drawn = (
        np.random.default_rng([seed, i]).permutation(len(c))[: limits[i]] for i, c in enumerate(completions)
    )
    return [np.sort(positions) for positions in drawn]


def read_pair(model, material: Material) -> tuple[Clouds, Clouds, list[float]]:
    """States of a PEFT model without and with its adapter, and each prompt's mean Fisher-Rao distance between the two."""
    from enigma.llm.states import StateReader, batches

    width, owner = model.config.get_text_config().hidden_size, material.owner
    # Made whole at the start: small arrays that stay between large ones that go leave holes in memory, gigabytes in all.
    sides = [
        Clouds(
            np.empty((len(material.prompts), len(material.layers), width), np.float32),
            np.empty((len(material.layers), len(owner), width), np.float32),
        )
        for _ in range(2)
    ]
    with model.disable_adapter():
        base = StateReader(model, material.prefix, material.layers)
    arm = StateReader(model, material.prefix, material.layers)
    distances = []
    for rows in track(list(batches(len(material.prompts), material.batch_size)), "states", unit="batch"):
        texts = [material.prompts[i] for i in rows], [material.completions[i] for i in rows]
        with model.disable_adapter():
            before = list(base.read(*texts, logits=True))
        for i, *pair in zip(rows, before, arm.read(*texts, logits=True), strict=True):
            distances.append(measures.fisher_rao(*(logits for _, logits in pair)).mean().item())
            for side, (hidden, _) in zip(sides, pair, strict=True):
                side.means[i] = hidden.mean(1)
                side.tokens[:, owner == i] = hidden[:, material.picked[i]]
    return *sides, distances


def read_told(model, material: Material, principles: Sequence[int]) -> np.ndarray:
    """Mean state of the completion of each prompt with a principle, (principles, prompts, layers, d)."""
    from enigma.llm.states import StateReader, batches

    reader = StateReader(model, material.prefix, material.layers)
    completions = material.completions[:: material.told_step]
    states = []
    for principle in track(principles, "states under each principle", unit="principle"):
        for rows in batches(len(completions), material.batch_size):
            read = reader.read([material.told[principle][i] for i in rows], [completions[i] for i in rows])
            states += [hidden.mean(1).numpy() for hidden, _ in read]
    return np.stack(states).reshape(len(principles), len(completions), *states[0].shape)
