"""Geometry of hidden states: how far, and where to, did training move them? (docs/method.md, eq. 16 to 23)

Clouds are matrices of points (n, d), one row a token or a prompt. Every measure is one function of arrays. Intervals of
measures of a whole cloud are a delete-a-group jackknife over prompts, because a bootstrap repeats points, and repeated
points lower rank and dimension. On clouds with a known answer (24 prompts, 10 dimensions) 95 % intervals of a bootstrap
held the truth in 50 % of cases for the effective rank, 73 % participation ratio, 83 % anisotropy, 90 % CKA, 3 % TwoNN;
those of the jackknife in 92, 93, 93, 97 and 65 %: TwoNN is itself biased in ten dimensions.

Left out: attention patterns, gradients, and any correction for looking at many layers (the claims do that).
"""

import math
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from scipy import stats
from scipy.sparse.linalg import svds

from enigma.method.stats import Interval

JACKKNIFE_GROUPS = 8
FOLDS = 4


def fisher_rao(logits_p: torch.Tensor, logits_q: torch.Tensor) -> torch.Tensor:
    """Fisher-Rao distance 2 arccos sum_v sqrt(p_v q_v) of distributions, (..., V) each -> (...) (eq. 16).

    Radians in [0, pi]; pi for distributions without common support. Computed as 4 arcsin(|sqrt p - sqrt q| / 2), the
    same number, which stays exact where the distributions are nearly equal. float32 or better.
    """
    logits_p, logits_q = (x.double() if x.dtype == torch.float64 else x.float() for x in (logits_p, logits_q))
    roots = [torch.exp(torch.log_softmax(x, -1) / 2) for x in (logits_p, logits_q)]
    return 4 * torch.arcsin(
        (torch.linalg.vector_norm(roots[0] - roots[1], dim=-1) / 2).clamp(max=math.sqrt(0.5))
    )


def linear_cka_debiased(x, y) -> float:
    """Linear CKA of matched rows x (n, d), y (n, e), n >= 4, from the unbiased HSIC estimator (eq. 17; Song et al. 2012).

    1 for representations equal up to rotation, shift and scale; 0 on average for independent ones, whatever their
    widths, and then sometimes negative. NaN where a cloud has no spread.
    """
    x, y = _matrix("x", x), _matrix("y", y)
    if len(x) != len(y) or len(x) < 4:
        raise ValueError(f"x and y: {len(x)} and {len(y)} rows, expected the same number, at least 4")
    gram_x, gram_y = (_gram_without_diagonal(cloud) for cloud in (x, y))
    own = _unbiased_hsic(gram_x, gram_x) * _unbiased_hsic(gram_y, gram_y)
    return _unbiased_hsic(gram_x, gram_y) / math.sqrt(own) if own > 0 else float("nan")


def _gram_without_diagonal(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(0)
    gram = x @ x.T
    np.fill_diagonal(gram, 0)
    return gram


def _unbiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    n = len(k)
    rows_k, rows_m = k.sum(1), m.sum(1)
    total = (
        (k * m).sum() + rows_k.sum() * rows_m.sum() / ((n - 1) * (n - 2)) - 2 * (rows_k @ rows_m) / (n - 2)
    )
    return float(total / (n * (n - 3)))


def effective_rank(x) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues (eq. 18), x (n, d): between 1 and min(n - 1, d).

    The variant on variances; Roy and Vetterli 2007 take the singular values, whose entropy is larger. NaN where
    the cloud has no spread.
    """
    share = _spectrum(x)
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else float("nan")


def participation_ratio(x) -> float:
    """(sum of eigenvalues)^2 / sum of squared eigenvalues of the covariance of x (n, d) (eq. 18); NaN without spread."""
    share = _spectrum(x)
    return float(1 / (share**2).sum()) if len(share) else float("nan")


def _spectrum(x) -> np.ndarray:
    """Positive eigenvalues of the covariance, as shares of their sum."""
    x = _matrix("x", x)
    x = x - x.mean(0)
    values = np.linalg.eigvalsh(x @ x.T if len(x) < x.shape[1] else x.T @ x)
    values = values[values > 1e-12 * max(values.max(), 1e-300)]
    return values / values.sum()


def anisotropy(x) -> float:
    """Mean cosine over all pairs of different rows of x (n, d), n >= 2 (eq. 19), in [-1, 1]; a zero row has cosine 0."""
    x = _matrix("x", x)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    units = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
    n = len(x)
    return float(((units.sum(0) ** 2).sum() - (units**2).sum()) / (n * (n - 1))) if n > 1 else float("nan")


def principal_angles(x, y, k: int) -> np.ndarray:
    """Angles in radians, largest first, (k,), between the top-k principal subspaces of x (n, d) and y (m, d) (eq. 20)."""
    return scipy.linalg.subspace_angles(
        _principal_axes(_matrix("x", x), k), _principal_axes(_matrix("y", y), k)
    )


def _principal_axes(x: np.ndarray, k: int) -> np.ndarray:
    x = x - x.mean(0)
    if not 1 <= k <= min(x.shape):
        raise ValueError(f"k: found {k}, expected between 1 and {min(x.shape)}")
    if k < min(x.shape):
        # Ones would be orthogonal to centred rows.
        start = np.random.default_rng(0).standard_normal(min(x.shape))
        return svds(x, k=k, v0=start)[2].T
    return np.linalg.svd(x, full_matrices=False)[2][:k].T


def intrinsic_dimension(x) -> float:
    """TwoNN intrinsic dimension (eq. 21; Facco et al. 2017) of x (n, d) by scikit-dimension, repeated points dropped.

    NaN for fewer than ten different points.
    """
    import skdim

    points = np.unique(_matrix("x", x), axis=0)
    return float(skdim.id.TwoNN().fit(points).dimension_) if len(points) >= 10 else float("nan")


def variance_ratio(x, labels) -> float:
    """Variance between the class means of x (n, d) over variance within classes (traces of the scatters).

    The Calinski-Harabasz score of scikit-learn without its degrees of freedom; NaN unless a class has two rows.
    """
    from sklearn.metrics import calinski_harabasz_score

    x, classes = _matrix("x", x), len(np.unique(labels))
    if len(x) <= classes:
        return float("nan")
    return float(calinski_harabasz_score(x, labels) * (classes - 1) / (len(x) - classes))


def classifier_hits(x, labels, groups) -> np.ndarray:
    """For each row of x (n, d), 1 where a linear classifier that saw none of the row's group predicts its label, else 0.

    Ridge classifier on standardised columns, at most four folds, whole groups in one fold; at least two groups.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = GroupKFold(min(FOLDS, len(np.unique(groups))))
    classifier = make_pipeline(StandardScaler(), RidgeClassifier())
    found = cross_val_predict(classifier, _matrix("x", x), labels, groups=groups, cv=folds)
    return (found == np.asarray(labels)).astype(float)


def displacement_share(displacement, directions) -> float:
    """Share, 0 to 1, of the energy of displacement (n, d) that lies in the span of directions (c, d).

    sum_i |P d_i|^2 / sum_i |d_i|^2 with P the projection on the span (eq. 22). NaN where either is zero.
    """
    return float(subset_shares(displacement, directions, np.arange(len(directions))[None])[0])


def subset_shares(displacement, directions, subsets) -> np.ndarray:
    """`displacement_share` in the span of each subset (draws, c) of the rows of directions (p, d), (draws,)."""
    displacement, directions = _matrix("displacement", displacement), _matrix("directions", directions)
    energy = (displacement**2).sum()
    if not energy or not directions.any():
        return np.full(len(subsets), np.nan)
    # |P d|^2 = b^T G^-1 b, with G the subset's Gram matrix and b the products of d with its directions.
    products = displacement @ directions.T
    pairs = subsets[:, :, None], subsets[:, None, :]
    inverse = np.linalg.pinv((directions @ directions.T)[pairs], rcond=1e-10, hermitian=True)
    return (inverse * (products.T @ products)[pairs]).sum((1, 2)) / energy


def span_basis(directions: np.ndarray) -> np.ndarray:
    """Orthonormal basis (d, r) of the span of directions (c, d), the axis of most energy first.

    Each axis points to where the directions do, summed.
    """
    _, values, axes = np.linalg.svd(directions, full_matrices=False)
    basis = axes[values > 1e-10 * max(values.max(), 1e-300)].T
    return basis * np.where((directions @ basis).sum(0) < 0, -1.0, 1.0)


def random_subsets(total: int, size: int, draws: int, seed: int) -> np.ndarray:
    """`draws` subsets of `size` of the numbers below `total`, each equally likely, (draws, size)."""
    return np.random.default_rng(seed).random((draws, total)).argsort(1)[:, :size]


def permutation_p(observed: float, null) -> float:
    """(1 + number of null values >= observed) / (1 + number of null values) (eq. 23): valid for any number of draws.

    A null value that differs from the observed one by rounding counts as equal.
    """
    null = np.asarray(null)
    return float((1 + (null >= observed - 1e-9 * abs(observed)).sum()) / (1 + len(null)))


def _matrix(name: str, x) -> np.ndarray:
    x = x.detach().cpu().double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name}: shape {x.shape}, expected (points, width), both positive")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: holds NaN or infinity, expected finite coordinates")
    return x


def jackknife_interval(
    statistic: Callable[[np.ndarray], float],
    owner,
    *,
    positive: bool = False,
    support: tuple[float, float] = (-math.inf, math.inf),
    level: float = 0.95,
) -> Interval:
    """Delete-a-group jackknife: `statistic(keep)` of all rows, with a t interval over groups of whole units.

    owner: (n,), the unit (prompt) of each row. `keep` is a boolean (n,). Units are dealt to at most eight groups,
    each left out once; the standard error is sqrt((g - 1)/g sum_j (value_j - mean)^2). A `positive` statistic (a rank,
    a ratio) gets its interval on the logarithm, so that the ends stay positive. Ends are cut to `support`, the smallest
    and the largest value that the statistic can have.
    """
    if positive:
        logarithm = jackknife_interval(lambda keep: float(np.log(statistic(keep))), owner, level=level)
        return Interval(*np.clip(np.exp(logarithm), *support).tolist())
    units, group = np.unique(np.asarray(owner), return_inverse=True)
    value = statistic(np.ones(len(group), dtype=bool))
    groups = min(JACKKNIFE_GROUPS, len(units))
    if groups < 2:
        return Interval(value, float("nan"), float("nan"))
    left_out = np.array([statistic(group % groups != j) for j in range(groups)])
    error = math.sqrt((groups - 1) / groups * ((left_out - left_out.mean()) ** 2).sum())
    reach = float(stats.t.ppf((1 + level) / 2, groups - 1)) * error
    return Interval(value, *np.clip([value - reach, value + reach], *support).tolist())
