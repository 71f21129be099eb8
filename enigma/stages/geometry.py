"""Stage 4: how training moved the model's states, between the untrained model and each arm (METHOD.md section 7).

Measures come first, as pure functions of arrays; the stage follows. Everything is read at the tokens of one greedy
completion per held-out prompt, written by the untrained model and fed to every model, so that token ids are
identical. No principle stands in those prompts.

Rules of the stage (our choice, unless a line says otherwise):
- Layers: at most ten, evenly spaced, counted back from the last. A layer number is the index into transformers'
  `hidden_states`; the last one is taken after the final norm.
- Tokens: at most 512, the same number from each prompt, drawn by a seed, for the measures of clouds; every second of
  them for the Sinkhorn divergence. Means over all tokens of a prompt for displacements and directions.
- Intervals, over prompts: a bootstrap for means; for measures of a whole cloud a delete-a-group jackknife, because a
  bootstrap repeats points, and repeated points lower rank and dimension. On clouds with a known answer (24 prompts, 10
  dimensions) 95 % intervals of a bootstrap held the truth in 50 % of cases for the effective rank, 73 % participation
  ratio, 83 % anisotropy, 90 % CKA, 3 % TwoNN; those of the jackknife in 92, 93, 93, 97 and 65 %: TwoNN is itself biased
  in ten dimensions. All speak for other prompts, not for other training seeds.
- Principle directions: mean over prompts of [state with the principle in the prompt - state without], on the same
  completion tokens as the displacement: what being told a principle does to the very states that training moves.
  At most sixteen prompts serve for them, and every second one where there are twelve or more, for time.
- The null for the span of the principle directions: the spans of as many principles drawn from the pool, the arm's
  own among them. It asks whether training moved the states along *these* principles rather than along what being told
  any principle does. Where the choice of the set has nothing to do with the displacement, the p-value is uniform by
  exchangeability, whatever the states look like. Random subspaces are no such null: changes of weights and of prompts
  share directions that no principle owns. Checked with ten random, untrained LoRA adapters on the embedded model (24
  tokens a completion, the two sets of four of the cpu profile): p <= 0.05, which should come up in 5 % of layers, came up
  in 5 % with this null; in 20 % with subspaces that have the covariance of what being told does to single prompts, and
  in 87 % with isotropic ones. Layers are not independent: read p over all of them
  (twice the median was below 0.05 in none of the 20 cases) and beside `grpo`.

States are kept in the model's own precision until they leave it: in bfloat16 a displacement much below one percent
of the state is rounding. Prompts are streamed, both models reading a batch in turn; a prompt leaves its mean states and its share of
the 512 tokens, so memory hardly grows with the number of prompts or their length.

Left out: attention patterns, gradients, and any correction for looking at many layers (the claims do that).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.linalg
import torch
from scipy import stats
from scipy.sparse.linalg import svds

from enigma.data.principles import Principle, load_pool
from enigma.data.questions import load_questions
from enigma.errors import InputError
from enigma.llm.prompts import encode, messages
from enigma.llm.scoring import shared_prefix
from enigma.method.stats import Interval, mean_interval
from enigma.method.transport import sinkhorn_divergence
from enigma.record.progress import track
from enigma.record.results import atomic_write_json, file_hash
from enigma.record.runlock import one_writer

MAX_LAYERS = 10
MAX_TOKENS = 512
JACKKNIFE_GROUPS = 8
PROBE_FOLDS = 4
MAX_TOLD = 16  # prompts that are read with each principle
MAX_POOL = 16  # principles that the permutation test draws from


# ---- measures: distributions and clouds of points ------------------------------------------------------------------


def fisher_rao(logits_p: torch.Tensor, logits_q: torch.Tensor) -> torch.Tensor:
    """Fisher-Rao distance 2 arccos sum_v sqrt(p_v q_v) of categorical distributions, (..., V) each -> (...).

    Radians in [0, pi]; pi for distributions without common support. Computed as 4 arcsin(|sqrt p - sqrt q| / 2), the
    same number, which stays exact where the distributions are nearly equal. float32 or better.
    """
    logits_p, logits_q = (x.double() if x.dtype == torch.float64 else x.float() for x in (logits_p, logits_q))
    roots = [torch.exp(torch.log_softmax(x, -1) / 2) for x in (logits_p, logits_q)]
    return 4 * torch.arcsin(
        (torch.linalg.vector_norm(roots[0] - roots[1], dim=-1) / 2).clamp(max=math.sqrt(0.5))
    )


def linear_cka_debiased(x, y) -> float:
    """Linear CKA of matched rows x (n, d), y (n, e), n >= 4, from the unbiased HSIC estimator (Song et al. 2012).

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
    """exp of the entropy of the normalised eigenvalues of the covariance of x (n, d): between 1 and min(n - 1, d).

    The variant on variances; Roy and Vetterli 2007 take the singular values, whose entropy is larger. NaN where
    the cloud has no spread.
    """
    share = _spectrum(x)
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else float("nan")


def participation_ratio(x) -> float:
    """(sum of eigenvalues)^2 / sum of squared eigenvalues of the covariance of x (n, d); NaN without spread."""
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
    """Mean cosine over all pairs of different rows of x (n, d), n >= 2, in [-1, 1]; zero rows count as cosine 0."""
    x = _matrix("x", x)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    units = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
    n = len(x)
    return float(((units.sum(0) ** 2).sum() - (units**2).sum()) / (n * (n - 1))) if n > 1 else float("nan")


def principal_angles(x, y, k: int) -> np.ndarray:
    """Angles in radians, largest first, (k,), between the top-k principal subspaces of x (n, d) and y (m, d)."""
    return scipy.linalg.subspace_angles(
        _principal_axes(_matrix("x", x), k), _principal_axes(_matrix("y", y), k)
    )


def _principal_axes(x: np.ndarray, k: int) -> np.ndarray:
    x = x - x.mean(0)
    if not 1 <= k <= min(x.shape):
        raise ValueError(f"k: found {k}, expected between 1 and {min(x.shape)}")
    if k < min(x.shape):
        start = np.random.default_rng(0).standard_normal(
            min(x.shape)
        )  # ones would be orthogonal to centred rows
        return svds(x, k=k, v0=start)[2].T
    return np.linalg.svd(x, full_matrices=False)[2][:k].T


def intrinsic_dimension(x) -> float:
    """TwoNN intrinsic dimension (Facco et al. 2017) of x (n, d) by scikit-dimension, repeated points dropped.

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


def probe_hits(x, labels, groups) -> np.ndarray:
    """For each row of x (n, d), 1 where a linear probe that saw none of the row's group tells its label, else 0.

    Ridge classifier on standardised columns, at most four folds, whole groups in one fold; at least two groups.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = GroupKFold(min(PROBE_FOLDS, len(np.unique(groups))))
    probe = make_pipeline(StandardScaler(), RidgeClassifier())
    told = cross_val_predict(probe, _matrix("x", x), labels, groups=groups, cv=folds)
    return (told == np.asarray(labels)).astype(float)


# ---- measures: displacement and directions -------------------------------------------------------------------------


def displacement_share(displacement, directions) -> float:
    """Share, 0 to 1, of the energy of displacement (n, d) that lies in the span of directions (c, d).

    sum_i |P d_i|^2 / sum_i |d_i|^2 with P the projection on the span. NaN where either is zero.
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
    """(1 + number of null values >= observed) / (1 + number of null values): valid for any number of draws.

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


# ---- reading states ------------------------------------------------------------------------------------------------


def measured_layers(count: int) -> list[int]:
    """At most ten of the layers 1..count, evenly spaced, counted back from the last."""
    step = math.ceil(count / MAX_LAYERS)
    return sorted(range(count, 0, -step))


class StateReader:
    """Reads a model's states at completion tokens. The prompts' common beginning is computed once, not per prompt.

    `model` is used as it is when called: make the reader and read under the same adapter setting.
    """

    def __init__(self, model, prefix: list[int], layers: list[int]):
        self.model, self.prefix, self.layers, self.cache = model, prefix, layers, None
        if prefix:
            with torch.no_grad():
                ids = torch.tensor([prefix], device=model.device)
                self.cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    @torch.no_grad()
    def read(self, prompts: list[list[int]], completions: list[list[int]], *, hidden=True, logits=False):
        """One (hidden (layers, T, d) float32, logits (T, V)) per row; None for what is not asked for.

        hidden[:, t] is the state at completion token t, logits[t] the prediction of that token.
        """
        own = [prompt[len(self.prefix) :] for prompt in prompts]
        rows = [torch.tensor(p + c) for p, c in zip(own, completions, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        # Padding stands on the right, where a causal model does not see it from the tokens that are read.
        mask = torch.ones(len(rows), len(self.prefix) + ids.shape[1], dtype=torch.long)
        for row, tokens in enumerate(rows):
            mask[row, len(self.prefix) + len(tokens) :] = 0
        first = min(map(len, own)) - 1
        output = self.model(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            past_key_values=self._expanded(len(rows)),
            use_cache=self.cache is not None,
            output_hidden_states=hidden,
            logits_to_keep=ids.shape[1] - first if logits else 1,
        )
        for row, (p, c) in enumerate(zip(own, completions, strict=True)):
            states = (
                [output.hidden_states[i][row, len(p) : len(p) + len(c)] for i in self.layers]
                if hidden
                else None
            )
            start = len(p) - 1 - first
            yield (
                torch.stack(states).float().cpu() if hidden else None,
                output.logits[row, start : start + len(c)] if logits else None,
            )

    def _expanded(self, rows: int):
        if self.cache is None:
            return None
        cache = deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


@torch.no_grad()
def greedy_completions(
    model, tokenizer, prompts: list[list[int]], max_tokens: int, batch_size: int
) -> list[list[int]]:
    """The model's most likely continuation of each prompt, token by token, its end token included."""
    ends = model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id}
    completions = []
    for rows in track(list(_batches(len(prompts), batch_size)), "greedy completions", unit="batch"):
        batch = tokenizer.pad(
            {"input_ids": [prompts[i] for i in rows]}, padding_side="left", return_tensors="pt"
        )
        output = model.generate(
            **batch.to(model.device),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        for ids in output[:, batch["input_ids"].shape[1] :].tolist():
            end = next((t + 1 for t, token in enumerate(ids) if token in ends), len(ids))
            completions.append(ids[:end])
    return completions


def _batches(count: int, size: int) -> Iterator[list[int]]:
    return (list(range(start, min(start + size, count))) for start in range(0, count, size))


# ---- the stage -----------------------------------------------------------------------------------------------------


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
    bootstrap_seed: int

    @property
    def owner(self) -> np.ndarray:
        """The prompt of each kept token, (n,)."""
        return np.repeat(np.arange(len(self.picked)), [len(positions) for positions in self.picked])


@dataclass
class Clouds:
    means: np.ndarray  # (prompts, layers, d): mean over the completion's tokens
    tokens: np.ndarray  # (layers, n, d): the kept tokens


@one_writer
def run(profile, results) -> dict[str, pd.DataFrame]:
    """Measure every arm against the untrained model; write and return tables `geometry`, `directions`, `projection`.

    Runs that were measured already, with this profile, adapter and choice of principles, are read from
    runs/<run>/geometry.json. Raises InputError where an adapter or the selection is missing.
    """
    pool, sets = _principles(profile, results)
    keys = {pair: _key(profile, pool, sets, results.run_folder(*pair)) for pair in profile.runs()}
    parts = {pair: _read_part(results.run_folder(*pair), key) for pair, key in keys.items()}
    missing = [pair for pair, part in parts.items() if part is None]
    if missing:
        base = _Base(profile, results, pool, sets)
        for pair in missing:
            parts[pair] = base.compare(*pair)
            atomic_write_json(results.run_folder(*pair) / "geometry.json", {"key": keys[pair], **parts[pair]})
    frames = {name: _frame(parts, name) for name in COLUMNS}
    for name, frame in frames.items():
        results.write_table(name, frame, CAPTIONS[name], inputs=("selection",))
    return frames


COLUMNS = {
    "geometry": ("arm", "seed", "layer", "measure", "value", "low", "high"),
    "directions": (
        *("arm", "seed", "layer", "observed", "observed_low", "observed_high"),
        *("isotropic", "null_mean", "null_low", "null_high", "p_value"),
    ),
    "projection": ("arm", "seed", "layer", "kind", "name", "axis_1", "axis_2"),
}
CAPTIONS = {
    "geometry": "Each arm against the untrained model on held-out prompts and identical tokens, by layer. fisher_rao and "
    "principal_angle in radians; sinkhorn in units of the untrained states' mean squared distance; displacement as a "
    "share of the state's norm; the others without unit. Names ending in _base are the untrained model's. Intervals "
    "95 %, over prompts.",
    "directions": "Share of the displacement's energy in the span of the arm's principle directions, with its 95 % "
    "interval over prompts, against the spans of as many principles drawn from the pool, the arm's own among them (mean "
    "and central 95 %), with the permutation p-value, not corrected for the number of layers. isotropic: the expectation "
    "for a random subspace without any preference, dimension / width.",
    "projection": "Displacement of each prompt's mean state, and the principle directions themselves, on the two leading "
    "axes of the arm's principle span, in units of the untrained states' root mean square norm.",
}


def _principles(profile, results) -> tuple[list[Principle], dict[str, list[int]]]:
    """The principles that the permutation test draws from, and the places of the high-SI and the low-SI set in them."""
    selection = results.read_yaml("selection")
    pool = {principle.name: principle for principle in load_pool(profile.principles.pool)}
    try:
        sets = {
            name: [pool[member].name for member in selection[name]["principles"]] for name in profile.sets()
        }
    except (KeyError, TypeError) as error:
        raise InputError(
            f"selection.yaml: {error} not found in it or in pool {profile.principles.pool}; expected the sets "
            "of the profile's arms; run notebook 01_select again"
        ) from None
    chosen = dict.fromkeys(chain.from_iterable(sets.values()))
    others = np.random.default_rng(profile.seeds.evaluation).permutation(list(pool)).tolist()
    names = [*(chosen | dict.fromkeys(others))][: max(MAX_POOL, len(chosen))]
    return [pool[name] for name in names], {
        name: [names.index(m) for m in members] for name, members in sets.items()
    }


def _adapter(run_folder: Path) -> Path:
    adapter = run_folder / "adapter"
    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(
            f"{adapter}: no trained adapter; expected adapter_model.safetensors; run notebook 02_train"
        )
    return adapter


def _key(profile, pool: list[Principle], sets: dict[str, list[int]], run_folder: Path) -> str:
    weights = file_hash(_adapter(run_folder) / "adapter_model.safetensors")
    return _digest([profile.hash, weights, [principle.text for principle in pool], sets])


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _read_part(folder: Path, key: str) -> dict | None:
    try:
        part = json.loads((folder / "geometry.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return part if part.get("key") == key else None


def _frame(parts: dict, name: str) -> pd.DataFrame:
    rows = [[arm, seed, *row] for (arm, seed), part in parts.items() for row in part[name]]
    frame = pd.DataFrame(rows, columns=COLUMNS[name])
    texts = ("arm", "measure", "kind", "name")
    return frame.astype({column: float for column in COLUMNS[name][3:] if column not in texts})


class _Base:
    """The untrained model's side: what every arm reads, and the principles' effects."""

    def __init__(self, profile, results, pool: list[Principle], sets: dict[str, list[int]]):
        from enigma.llm.loading import load_policy

        self.profile, self.results, self.sets = profile, results, sets
        self.names = [principle.name for principle in pool]
        model, tokenizer = load_policy(profile.model, None, seed=profile.seeds.initialisation)
        self.material = _material(profile, results, pool, model, tokenizer)
        self.told = _read_told(model, self.material, range(len(pool)))
        self.told_rows = {
            name: _told_rows(self.told[rows], self.material, "_base") for name, rows in sets.items()
        }
        self.cloud_rows: list[
            list
        ] = []  # once the first arm has been read, with the untrained model beside it

    def compare(self, arm: str, seed: int) -> dict[str, list]:
        """Rows of the three tables for one run, without arm and seed."""
        from enigma.llm.loading import load_policy

        material, spec, name = self.material, self.profile.geometry, self.profile.arms[arm].set
        adapter = _adapter(self.results.run_folder(arm, seed))
        model, _ = load_policy(self.profile.model, adapter, seed=self.profile.seeds.initialisation)
        base, clouds, distances = _read_pair(model, material)
        distance = mean_interval(distances, seed=material.bootstrap_seed, support=(0, math.pi))
        told = _read_told(model, material, self.sets[name])
        self.cloud_rows = self.cloud_rows or _cloud_rows(base, material, "_base")
        directions, projection = self._direction_rows(base, clouds, self.sets[name])
        return {
            "geometry": [
                [material.layers[-1], "fisher_rao", *distance],
                *_paired_rows(clouds, base, material, spec.subspace),
                *_cloud_rows(clouds, material, ""),
                *self.cloud_rows,
                *_told_rows(told, material, ""),
                *self.told_rows[name],
            ],
            "directions": directions,
            "projection": projection,
        }

    def _direction_rows(self, base: Clouds, arm: Clouds, members: list[int]) -> tuple[list[list], list[list]]:
        """Rows of `directions` and `projection`, without arm and seed."""
        spec, seed, material = self.profile.geometry, self.profile.seeds.evaluation, self.material
        subsets = random_subsets(len(self.told), len(members), spec.permutations, seed)
        shares, points = [], []
        for i, layer in enumerate(material.layers):
            displacement = arm.means[:, i] - base.means[:, i]
            effects = self.told[:, :, i] - base.means[:: material.told_step, i]
            directions = effects.mean(1)
            basis = span_basis(directions[members])
            if not displacement.any() or not basis.size:
                shares.append([layer] + [float("nan")] * 8)
                continue
            observed = _share_interval(displacement, effects[members], material.told_step)
            null = subset_shares(displacement, directions, subsets)
            isotropic, ends = basis.shape[1] / basis.shape[0], np.quantile(null, [0.025, 0.975])
            shares.append(
                [layer, *observed, isotropic, null.mean(), *ends, permutation_p(observed.value, null)]
            )
            unit = np.sqrt((base.tokens[i].astype(np.float64) ** 2).sum(1).mean())
            names = [self.names[member] for member in members]
            points += _points(layer, "principle", names, directions[members] @ basis[:, :2] / unit)
            points += _points(
                layer, "displacement", range(len(displacement)), displacement @ basis[:, :2] / unit
            )
        return shares, points


def _material(profile, results, pool: list[Principle], model, tokenizer) -> Material:
    spec = profile.geometry
    questions = load_questions(profile.questions, "heldout", spec.prompts, profile.seeds.data)

    def encoded(question: str, principle: str | None) -> list[int]:
        chat = messages(question, principle, profile.prompts.placement, profile.prompts.demonstration)
        return encode(tokenizer, chat)

    prompts = [encoded(question, None) for question in questions]
    step = max(2 if len(prompts) >= 12 else 1, math.ceil(len(prompts) / MAX_TOLD))
    told = [[encoded(question, principle.text) for question in questions[::step]] for principle in pool]
    completions = _kept_completions(
        profile,
        results,
        lambda: greedy_completions(model, tokenizer, prompts, spec.max_tokens, spec.batch_size),
    )
    return Material(
        prompts=prompts,
        completions=completions,
        told=told,
        told_step=step,
        picked=_pick_tokens(completions, profile.seeds.evaluation),
        prefix=prompts[0][: shared_prefix([*prompts, *chain.from_iterable(told)])],
        layers=measured_layers(model.config.get_text_config().num_hidden_layers),
        batch_size=spec.batch_size,
        bootstrap_seed=profile.seeds.bootstrap,
    )


def _kept_completions(profile, results, write: Callable[[], list[list[int]]]) -> list[list[int]]:
    """The completions of an earlier run of this profile, so that arms measured later are read at the same tokens."""
    path = results.runs / "geometry_completions.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    if kept.get("profile") != profile.hash:
        kept = {"profile": profile.hash, "completions": write()}
        atomic_write_json(path, kept)
    return kept["completions"]


def _pick_tokens(completions: list[list[int]], seed: int) -> list[np.ndarray]:
    each = max(1, MAX_TOKENS // len(completions))
    limits = [each if i < MAX_TOKENS else 0 for i in range(len(completions))]
    drawn = (
        np.random.default_rng([seed, i]).permutation(len(c))[: limits[i]] for i, c in enumerate(completions)
    )
    return [np.sort(positions) for positions in drawn]


def _read_pair(model, material: Material) -> tuple[Clouds, Clouds, list[float]]:
    """States of a PEFT model without and with its adapter, and each prompt's mean Fisher-Rao distance between the two."""
    width, owner = model.config.get_text_config().hidden_size, material.owner
    # Whole from the start: small arrays kept between large ones that go would leave holes in memory, gigabytes in all.
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
    for rows in track(list(_batches(len(material.prompts), material.batch_size)), "states", unit="batch"):
        texts = [material.prompts[i] for i in rows], [material.completions[i] for i in rows]
        with model.disable_adapter():
            before = list(base.read(*texts, logits=True))
        for i, *pair in zip(rows, before, arm.read(*texts, logits=True), strict=True):
            distances.append(fisher_rao(*(logits for _, logits in pair)).mean().item())
            for side, (hidden, _) in zip(sides, pair, strict=True):
                side.means[i] = hidden.mean(1)
                side.tokens[:, owner == i] = hidden[:, material.picked[i]]
    return *sides, distances


def _read_told(model, material: Material, principles: Sequence[int]) -> np.ndarray:
    """Mean state of each told prompt's completion, (principles, told prompts, layers, d)."""
    reader = StateReader(model, material.prefix, material.layers)
    completions = material.completions[:: material.told_step]
    states = []
    for principle in track(principles, "states under each principle", unit="principle"):
        for rows in _batches(len(completions), material.batch_size):
            read = reader.read([material.told[principle][i] for i in rows], [completions[i] for i in rows])
            states += [hidden.mean(1).numpy() for hidden, _ in read]
    return np.stack(states).reshape(len(principles), len(completions), *states[0].shape)


def _paired_rows(arm: Clouds, base: Clouds, material: Material, subspace: int) -> list[list]:
    """Measures between the two models' states at the same tokens."""
    rows, owner = [], material.owner
    moved = np.linalg.norm(arm.means - base.means, axis=2) / np.linalg.norm(base.means, axis=2)
    for i, layer in enumerate(material.layers):
        x, y = arm.tokens[i], base.tokens[i]
        few = [torch.from_numpy(cloud[::2]) for cloud in (x, y)]
        measures = {
            "displacement": mean_interval(moved[:, i], seed=material.bootstrap_seed, support=(0, math.inf)),
            "sinkhorn": jackknife_interval(
                lambda keep, few=few: sinkhorn_divergence(few[0][keep], few[1][keep]).item(),
                owner[::2],
                support=(0, math.inf),
            ),
            "cka": jackknife_interval(
                lambda keep, x=x, y=y: linear_cka_debiased(x[keep], y[keep]), owner, support=(-1, 1)
            ),
            "principal_angle": jackknife_interval(
                lambda keep, x=x, y=y: principal_angles(x[keep], y[keep], subspace)[0],
                owner,
                support=(0, math.pi / 2),
            ),
        }
        rows += [[layer, name, *interval] for name, interval in measures.items()]
    return rows


def _cloud_rows(clouds: Clouds, material: Material, suffix: str) -> list[list]:
    """Measures of one model's states alone."""
    rows = []
    for layer, x in zip(material.layers, clouds.tokens, strict=True):
        for measure in (effective_rank, participation_ratio, anisotropy, intrinsic_dimension):
            options = {"support": (-1, 1)} if measure is anisotropy else {"positive": True}
            interval = jackknife_interval(
                lambda keep, x=x, measure=measure: measure(x[keep]), material.owner, **options
            )
            rows.append([layer, measure.__name__ + suffix, *interval])
    return rows


def _told_rows(told: np.ndarray, material: Material, suffix: str) -> list[list]:
    """How well the principle in the prompt can be told from the states, each question's own mean taken away."""
    count, prompts = told.shape[:2]
    labels, groups = np.repeat(np.arange(count), prompts), np.tile(np.arange(prompts), count)
    rows = []
    for i, layer in enumerate(material.layers):
        x = (told[:, :, i] - told[:, :, i].mean(0)).reshape(count * prompts, -1)
        ratio = jackknife_interval(
            lambda keep, x=x: variance_ratio(x[keep], labels[keep]), groups, positive=True
        )
        hits = probe_hits(x, labels, groups).reshape(count, prompts).mean(0)
        accuracy = mean_interval(hits, seed=material.bootstrap_seed, support=(0, 1))
        rows += [[layer, f"separability{suffix}", *ratio], [layer, f"probe_accuracy{suffix}", *accuracy]]
    return rows


def _share_interval(displacement: np.ndarray, effects: np.ndarray, step: int) -> Interval:
    """`displacement_share` (prompts, d) in the span of the mean effects (principles, prompts [::step], d).

    Every step-th prompt was read with the principles: a unit of the jackknife is such a prompt and those up to the next.
    """
    return jackknife_interval(
        lambda keep: displacement_share(displacement[keep], effects[:, keep[::step]].mean(1)),
        np.arange(len(displacement)) // step,
        positive=True,
        support=(0, 1),
    )


def _points(layer: int, kind: str, names, coordinates: np.ndarray) -> list[list]:
    padded = np.pad(coordinates, ((0, 0), (0, 2 - coordinates.shape[1])))
    return [[layer, kind, str(name), *pair] for name, pair in zip(names, padded, strict=True)]
