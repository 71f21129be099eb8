"""InfoMEC: are sources of variation kept apart by the dimensions of a representation? Source: arXiv 2305.18378.

Of NMI_ij = I(s_i; z_j) / H(s_i) for m sources and d active dimensions, each in [0, 1]:

    modularity    mean_j (max_i NMI_ij / sum_i NMI_ij - 1/m) / (1 - 1/m): a dimension knows one source
    compactness   mean_i (max_j NMI_ij / sum_j NMI_ij - 1/d) / (1 - 1/d): a source is known to one dimension
    explicitness  mean_i (1 - CE_i / H(s_i)): what a logistic regression on all dimensions predicts of a source

Departures [D]: information of a continuous dimension by nearest neighbours (Ross 2014, three of them), not by bins of a
quantised latent; a dimension is active where that estimate is above zero for any source; the cross-entropy CE is over
held-out groups, so explicitness can fall below zero.
"""

from typing import NamedTuple

import numpy as np

FOLDS = 4


class InfoMEC(NamedTuple):
    modularity: float
    compactness: float
    explicitness: float


def infomec(latents, sources, groups=None, seed: int = 0) -> InfoMEC:
    """The three measures of latents (n, d) and discrete sources (n, m), m and d at least 2.

    `groups` (n,): rows of one group are in one fold of the logistic part; by default every row is its own. Modularity
    and compactness are 0 where no dimension is active. Raises ValueError for one source or one dimension, or a source
    that does not vary.
    """
    from sklearn.feature_selection import mutual_info_classif

    z, s = np.asarray(latents, float), np.asarray(sources)
    if z.ndim != 2 or s.ndim != 2 or min(z.shape[1], s.shape[1]) < 2 or len(z) != len(s):
        raise ValueError(
            f"latents {z.shape} and sources {s.shape}: expected (n, d) and (n, m), d and m at least 2"
        )
    entropies = np.array([_entropy(column) for column in s.T])
    if not entropies.all():
        raise ValueError("a source has one value alone; expected each to vary")
    known = np.stack([mutual_info_classif(z, column, random_state=seed) for column in s.T])
    nmi = np.minimum(known / entropies[:, None], 1)
    groups = np.arange(len(z)) if groups is None else groups
    explained = [_explained(z, column, groups) for column in s.T]
    return InfoMEC(*_concentration(nmi), float(np.mean(explained)))


def _concentration(nmi: np.ndarray) -> tuple[float, float]:
    """Modularity and compactness of an (m, d) matrix."""
    nmi = nmi[:, nmi.max(0) > 0]
    if nmi.shape[1] < 2:
        return 0.0, 0.0
    return tuple(
        float(np.mean((m.max(0) / np.maximum(m.sum(0), 1e-12) - 1 / len(m)) / (1 - 1 / len(m))))
        for m in (nmi, nmi.T)
    )


def _entropy(labels: np.ndarray) -> float:
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(shares * np.log(shares)).sum())


def _explained(z: np.ndarray, labels: np.ndarray, groups) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = GroupKFold(min(FOLDS, len(np.unique(groups))))
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    chances = cross_val_predict(classifier, z, labels, groups=groups, cv=folds, method="predict_proba")
    return 1 - log_loss(labels, chances) / _entropy(labels)


def told_apart(states, draws: int, seed: int = 0) -> list[list]:
    """[measure, value, null mean, null 95 % quantile, p] of states (K, prompts, d) under K principles, K at least 2.

    Each principle's indicator is a source; the latents are the 2K leading principal axes, each prompt's own mean taken
    away. Null: principles permuted within prompts, `draws` times.
    """
    states = np.asarray(states, float)
    k, prompts = states.shape[:2]
    u, s, _ = np.linalg.svd((states - states.mean(0)).reshape(k * prompts, -1), full_matrices=False)
    latents, groups = (u * s)[:, : 2 * k], np.tile(np.arange(prompts), k)
    labels, generator = np.repeat(np.arange(k), prompts).reshape(k, prompts), np.random.default_rng(seed)
    orders = [labels] + [generator.permuted(labels, axis=0) for _ in range(draws)]
    found, *null = [infomec(latents, order.reshape(-1, 1) == np.arange(k), groups, seed) for order in orders]
    rows = []
    for name, value, drawn in zip(InfoMEC._fields, found, np.array(null).T, strict=True):
        p_value = (1 + (drawn >= value - 1e-9).sum()) / (1 + draws)
        rows.append([name, value, float(drawn.mean()), float(np.quantile(drawn, 0.95)), float(p_value)])
    return rows
