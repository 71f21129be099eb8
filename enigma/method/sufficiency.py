"""The Sufficiency Index: how much of a principle's identity does a chain of thought carry?

For one question, N completions were sampled under K principles; `scores[i, k]` is the summed log-probability (nats) of
completion i under principle k. With a uniform prior the posterior of the principle is

    pi_ik = p(c_k | y_i, x) = softmax_k S[i, :]                                                      (eq. 9)

and SI is the information that a completion has about its principle, as a share of what there is to know:

    SI = I(Y; C | X) / log K                                                                        (eq. 11)

On the untrained model that wrote the completions the posterior is exact. Then a completion speaks for every principle
in proportion to its posterior, and not only for the one that it was sampled under (Rao-Blackwell): a quarter of the
variance, and no further forward. All sums here are over the completions of one question, so that intervals can be
taken over questions. Left out: a prior that is not uniform. Source: our choice [D]; the paper's own formula is not known.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp

from enigma.method.stats import Interval, ratio_difference, ratio_interval

TINY = 1e-290  # below it a sum of exponentials loses digits


class Ratio(NamedTuple):
    """Question by question, (..., questions) each: the sum of weighted information in nats, and of the weights."""

    information: np.ndarray
    weight: np.ndarray

    def sufficiency(self, k: int) -> np.ndarray:
        """SI (...,) over all questions, for K competing principles."""
        return share_of_known(self.information.sum(-1) / self.weight.sum(-1), k)

    def at(self, i: int) -> Ratio:
        """One principle's, or one set's: a row (questions,)."""
        return Ratio(self.information[i], self.weight[i])

    def interval(self, k: int, floor: float = 0.0, **boot) -> Interval:
        """SI of one row with its 95 % interval over questions, at most 1 and at least `floor` / log K.

        The model's own information is 0 at least; for another reader's bound, which may lie below, give -inf. `boot`:
        `resamples` and `seed` of `mean_interval`.
        Raises ValueError for more than one row.
        """
        if np.ndim(self.weight) != 1:
            raise ValueError(
                f"found rows of shape {np.shape(self.weight)}; expected one, (questions,); take it with .at(i)"
            )
        found = ratio_interval(self.information, self.weight, support=(floor, math.log(k)), **boot)
        return Interval(*(share_of_known(end, k) for end in found))

    def gain(self, other: Ratio, k: int, level: float = 0.95) -> Interval:
        """SI minus the SI of `other` (eq. 31), both (questions,), with an interval that is paired by question."""
        return Interval(*(share_of_known(end, k) for end in ratio_difference(self, other, level)))


def sufficiency_index(scores: list, critic: list | None = None) -> np.ndarray:
    """SI of each principle of a pool, (K,), at most 1: SI_k = I_k / log K, eq. 11 with the information of eq. 12.

    `scores`: for each question the (N, K) matrix of summed log-probabilities, in nats, of the model that wrote the
    completions; which principle each was sampled under does not matter. `critic`: matrices of another reader. A few
    questions can give a number below 0. Interval of principle i over questions:
    `principle_information(scores).at(i).interval(K)`. Raises ValueError for what is not a list of matrices without NaN.
    Source: our choice [D].
    """
    return principle_information(scores, critic).sufficiency(np.shape(scores[0])[1])


def set_sufficiency_index(scores: list, sets, critic: list | None = None) -> np.ndarray:
    """SI of each set of principles, (sets,), at most 1: eq. 11 with the information of eq. 13.

    `sets`: (sets, size) indices in [0, K); the rest as in `sufficiency_index`. Interval of set i over
    questions: `set_information(scores, sets).at(i).interval(size)`. Raises ValueError for sets of another shape. Source: our choice [D].
    """
    return set_information(scores, sets, critic).sufficiency(np.shape(sets)[1])


def share_of_known(information, k: int):
    """I / log K (eq. 11): information in nats about one of K principles, as a share of all there is to know."""
    return information / math.log(k)


def principle_information(scores: list, critic: list | None = None) -> Ratio:
    """Rao-Blackwellised information about each principle of a pool, (K, questions) sums; pi is the posterior of eq. 9.

        I_k = sum_i pi_ik (log K + log q_ik) / sum_i pi_ik                                           (eq. 12)

    `scores`: for each question the (N, K) matrix of the model that wrote the completions, which gives the weights pi.
    `critic`: matrices of the reader q, by default the same: then q = pi and I_k is the information itself. Another
    reader (other wordings, another model) gives a lower bound of it.
    """
    information, weight = [], []
    for own, read in zip(scores, critic or scores, strict=True):
        posterior = np.exp(log_softmax(_matrix(own), axis=1))
        gain = math.log(posterior.shape[1]) + log_softmax(_matrix(read), axis=1)
        information.append((posterior * gain).sum(0))
        weight.append(posterior.sum(0))
    return Ratio(np.stack(information, axis=-1), np.stack(weight, axis=-1))


def set_information(scores: list, sets, critic: list | None = None) -> Ratio:
    """Rao-Blackwellised information within sets of principles, from the pool's own matrices, (sets, questions) sums.

        w_i = sum_{c in S} pi_ic,   I_S = sum_i w_i (log|S| + sum_{c in S} pi_ic / w_i log q_ic(S)) / sum_i w_i    (eq. 13)

    where q(S) is the reader's posterior within the set. A completion counts as far as it may have been written under
    one of the set's principles. `sets`: (sets, size) indices in [0, K). `scores`, `critic` as in
    `principle_information`. With a trained arm's scores and the untrained model as critic it is legibility (eq. 14).
    """
    sets = np.asarray(sets)
    if sets.ndim != 2:
        raise ValueError(
            f"sets: found shape {sets.shape}; expected (sets, size), such as [[0, 1, 2]] for one set"
        )
    member = np.zeros((np.shape(scores[0])[1], len(sets)))
    np.put_along_axis(member, sets.T, 1.0, axis=0)
    information, weight = np.empty((len(sets), len(scores))), np.empty((len(sets), len(scores)))
    for q, (own, read) in enumerate(zip(scores, critic or scores, strict=True)):
        posterior = np.exp(log_softmax(_matrix(own), axis=1))
        read = _matrix(read)
        read = read - read.max(axis=1, keepdims=True)
        # Sums over the members of all sets as products of matrices: a large pool has thousands of sets.
        mass, total = posterior @ member, np.exp(read) @ member
        within_set = np.log(total, out=np.empty_like(total), where=total > TINY)
        far = total <= TINY  # sets far below the best principle, which exp cannot hold
        for i in np.flatnonzero(far.any(1)):
            within_set[i, far[i]] = logsumexp(read[i, sets[far[i]]], axis=1)
        weight[:, q] = mass.sum(0)
        information[:, q] = (
            weight[:, q] * math.log(sets.shape[1])
            + (posterior * read).sum(0) @ member
            - (mass * within_set).sum(0)
        )
    return Ratio(information, weight)


def _matrix(scores) -> np.ndarray:
    matrix = np.asarray(scores, dtype=float)
    if matrix.ndim != 2 or np.isnan(matrix).any():
        found = "NaN" if matrix.ndim == 2 else f"shape {matrix.shape}"
        raise ValueError(
            f"scores: found {found}; expected for each question a matrix (completions, principles) of log-probabilities"
        )
    return matrix


def sampled_information(scores: list, source: list) -> Ratio:
    """The plain estimate: each completion speaks for the principle that it was sampled under alone, (K, questions).

    The row bound of `mutual_information_bounds`, principle by principle. For a critic that did not write the completions it
    is a Barber-Agakov lower bound of the information. `source`: for each question (N,) integers in [0, K).
    """
    import torch  # here, since a command that refuses its input loads no torch

    from enigma.method.infonce import infonce_terms, row_bound

    information, weight = [], []
    for matrix, own in zip(scores, source, strict=True):
        losses = infonce_terms(torch.as_tensor(matrix, dtype=torch.float64), torch.as_tensor(own)).row
        k = np.shape(matrix)[1]
        weight.append(np.bincount(own, minlength=k))
        bounds = [row_bound(losses[torch.as_tensor(own) == c], k) for c in range(k)]
        information.append(weight[-1] * np.array(bounds))
    return Ratio(np.stack(information, axis=-1), np.stack(weight, axis=-1))


def pooled(ratio: Ratio) -> Ratio:
    """All principles of a `Ratio` together, (questions,)."""
    return Ratio(ratio.information.sum(0), ratio.weight.sum(0))


def within(scores: list, source: list, members) -> tuple[list, list]:
    """Matrices and sources of a set alone: its columns, and the completions that were sampled under them."""
    kept = []
    for matrix, own in zip(scores, source, strict=True):
        rows = np.isin(own, members)
        kept.append(
            (np.asarray(matrix)[rows][:, members], [list(members).index(k) for k in np.asarray(own)[rows]])
        )
    return [matrix for matrix, _ in kept], [own for _, own in kept]


# ---- choosing sets -------------------------------------------------------------------------------------------------


def candidate_sets(families: list, size: int, balanced: bool, limit: int = 5000, seed: int = 0) -> np.ndarray:
    """Sets of `size` principles, (sets, size) indices: all while there are at most `limit`, else as many drawn by `seed`.

    `families`: the family of each principle. With `balanced` no family has more members than it must, so that a set is
    not chosen for one style. Raises ValueError where no set is balanced.
    """
    n = len(families)
    if math.comb(n, size) <= limit:
        drawn = list(itertools.combinations(range(n), size))
    else:
        generator = np.random.default_rng(seed)
        drawn = sorted(
            {tuple(sorted(generator.choice(n, size, replace=False).tolist())) for _ in range(limit)}
        )
    sets = np.array(drawn)
    if balanced:
        codes = np.unique(np.array(families, dtype=str), return_inverse=True)[1]
        most = math.ceil(size / (codes.max() + 1))
        counts = np.stack([(codes[sets] == code).sum(1) for code in range(codes.max() + 1)])
        sets = sets[(counts <= most).all(0)]
    if not len(sets):
        raise ValueError("no set is balanced by family; expected families of several principles")
    return sets


def select(values: np.ndarray, sets: np.ndarray, names) -> dict[str, tuple[int, ...]]:
    """The sets that `names` asks for, by their SI `values` (sets,).

    `high` has the highest SI, `low` the lowest of those that share no principle with it. Another name is a number q in
    (0, 1): the set whose SI is at that quantile of all. Raises ValueError where no set is disjoint from the high one.
    """
    high = sets[values.argmax()]
    apart = ~np.isin(sets, high).any(1)
    if not apart.any():
        raise ValueError("no set is disjoint from the high-SI set; expected a pool of at least two sets")
    order = values.argsort(kind="stable")
    chosen = {"high": high, "low": sets[apart][values[apart].argmin()]}
    for name in names:
        if name not in chosen:
            chosen[name] = sets[order[round(float(name) * (len(order) - 1))]]
    return {name: tuple(chosen[name].tolist()) for name in names}
