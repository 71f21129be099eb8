"""Stage 4: how training moved the model's states, between the untrained model and each arm (docs/method.md, eq. 16 to 23).

Everything is read at the tokens of one greedy completion per held-out prompt, written by the untrained model and fed to
every model, so that token ids are identical. No principle stands in those prompts.

Rules of the stage (our choice [D]):
- Layers: at most `MAX_LAYERS`, evenly spaced, counted back from the last. A layer number is the index into transformers'
  `hidden_states`; the last one is taken after the final norm.
- Tokens: at most `MAX_TOKENS`, the same number from each prompt, drawn by a seed, for the measures of clouds; every second
  of them for the Sinkhorn divergence. Means over all tokens of a prompt for displacements and directions.
- Principle directions: mean over prompts of [state with the principle in the prompt - state without], on the same
  completion tokens as the displacement: what a principle in the prompt does to the very states that training moves.
- The null for the span of the principle directions: the spans of as many principles drawn from the pool, the arm's own
  among them. It asks whether training moved the states along *these* principles rather than along what any principle in
  the prompt does; under exchangeable sets its p-value is uniform. Random subspaces are no such null: changes of weights
  and of prompts share directions that no principle owns (with ten random adapters 87 % of layers came up at 0.05).
  Layers are not independent: read p over all of them, and beside `grpo`.

States are kept in the model's own precision until they leave it: in bfloat16 a displacement much below one percent of
the state is rounding. Prompts are streamed, both models reading a batch in turn.
"""

import math
import sys
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from enigma import stages
from enigma.data.principles import Principle, load_pool
from enigma.data.questions import load_questions
from enigma.method import geometry as measures
from enigma.method import infomec
from enigma.method.stats import Interval, mean_interval
from enigma.method.transport import sinkhorn_divergence
from enigma.profile import run_name
from enigma.record.cache import Piece, Store
from enigma.record.files import atomic_write_json, read_json
from enigma.stages import select, train
from enigma.stages.reading import Clouds, Material, pick_tokens, read_pair, read_told

NAME = "04_geometry"
MAX_LAYERS = 5
MAX_TOLD = 12  # prompts that are read with each principle
INFOMEC_DRAWS = 39  # permutations of its null, at most: each fits four logistic regressions a principle
MAX_POOL = 16  # principles that the permutation test draws from
COLUMNS = {
    "geometry": ("layer", "measure", "value", "low", "high"),
    "directions": (
        *("layer", "observed", "observed_low", "observed_high"),
        *("isotropic", "null_mean", "null_low", "null_high", "p_value"),
    ),
    "set_shares": ("layer", "set", "share"),
    "projection": ("layer", "kind", "name", "axis_1", "axis_2"),
    "infomec": ("layer", "measure", "value", "null_mean", "null_high", "p_value"),
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
    "set_shares": "Share of each run's displacement energy in the span of every set's principle directions, its own and "
    "the other arms', for the test that permutes sets.",
    "projection": "Displacement of each prompt's mean state, and the principle directions themselves, on the two leading "
    "axes of the arm's principle span, in units of the untrained states' root mean square norm.",
    "infomec": "Where the profile asks for it: modularity, compactness and explicitness (arXiv 2305.18378) of what a "
    "principle in the prompt does to the last layer's states, on their leading principal axes, each question's own mean taken away; each "
    "principle of the set is a source. Null: principles permuted within questions; null_high its 95 % quantile. Rows ending in "
    "_base are the untrained model's.",
}
CLOUD_MEASURES = (
    measures.effective_rank,
    measures.participation_ratio,
    measures.anisotropy,
    measures.intrinsic_dimension,
)


# ---- pieces --------------------------------------------------------------------------------------------------------


def pieces(profile, store: Store) -> list[Piece]:
    """One piece for what the untrained model writes and reads, and one for each run."""
    shared = _shared(profile, store)
    found = [Piece("geometry", "base", shared)]
    for arm, seed in profile.runs():
        own = {"set": profile.arms[arm].set, "bootstrap": profile.seeds.bootstrap}
        own["adapter"] = train.adapter_recipe(profile, store, arm, seed)
        found.append(Piece("geometry", run_name(arm, seed), shared | own))
    return found


def _shared(profile, store: Store) -> dict:
    from enigma.llm.loading import fingerprint

    pool, sets = _principles(profile, store)
    # What is off is no ingredient, so that it could be added later.
    unused = {"batch_size"} | ({"infomec"} if not profile.geometry.infomec else set())
    spec = profile.geometry.model_dump(exclude=unused)
    questions = load_questions(profile.questions, "heldout", profile.geometry.prompts, profile.seeds.data)
    return {
        "model": fingerprint(profile.model, profile.seeds.initialisation),
        "prompts": profile.prompts.model_dump(),
        "geometry": spec,
        "questions": questions,
        "pool": [p.text for p in pool],
        "sets": sets,
        "seed": profile.seeds.evaluation,
    }


def _principles(profile, store: Store) -> tuple[list[Principle], dict[str, list[int]]]:
    """The principles that the permutation test draws from, and the places of the arms' sets in them."""
    sets = select.chosen_sets(profile, store)
    pool = {principle.name: principle for principle in load_pool(profile.principles.pool)}
    chosen = dict.fromkeys(p.name for p in chain.from_iterable(sets.values()))
    others = np.random.default_rng(profile.seeds.evaluation).permutation(list(pool)).tolist()
    names = [*(chosen | dict.fromkeys(others))][: max(MAX_POOL, len(chosen))]
    places = {name: [names.index(p.name) for p in members] for name, members in sets.items()}
    return [pool[name] for name in names], places


# ---- measuring -----------------------------------------------------------------------------------------------------


def measure(profile, store: Store) -> dict:
    """Rows of the tables for every run: {"runs": [{"arm", "seed", "geometry": [...], ...}]}."""
    base, *runs = pieces(profile, store)
    told = store.get(base, lambda folder: _make_base(profile, store, folder))
    models = profile.runs()
    work = [
        (piece, partial(_run_rows, profile, store, told, *one))
        for piece, one in zip(runs, models, strict=True)
    ]
    rows = stages.made(store.rows, store, work, "geometry", "model")
    return {
        "runs": [{"arm": arm, "seed": seed, **one} for (arm, seed), one in zip(models, rows, strict=True)]
    }


def _make_base(profile, store: Store, folder: Path) -> None:
    """The untrained model's completions, and its states under each principle of the pool."""
    from enigma.llm.loading import load_model
    from enigma.llm.states import greedy_completions

    model, tokenizer = load_model(profile.model, profile.seeds.initialisation)
    prompts, _, _ = _encoded(profile, store, tokenizer)
    spec = profile.geometry
    completions = greedy_completions(model, tokenizer, prompts, spec.max_tokens, spec.batch_size)
    material = _material(profile, store, tokenizer, completions, model)
    atomic_write_json(folder / "completions.json", completions)
    np.save(folder / "told.npy", read_told(model, material, range(len(material.told))), allow_pickle=False)


def _run_rows(profile, store: Store, base_folder: Path, arm: str, seed: int) -> dict:
    """Rows of one run, without arm and seed."""
    from enigma.llm.loading import load_policy

    adapter = train.adapter(profile, store, arm, seed)
    model, tokenizer = load_policy(profile.model, adapter, profile.seeds.initialisation)
    material = _material(profile, store, tokenizer, read_json(base_folder / "completions.json"), model)
    told_base = np.load(base_folder / "told.npy", allow_pickle=False)
    pool, sets = _principles(profile, store)
    members, boot = sets[profile.arms[arm].set], profile.seeds.bootstrap
    base, clouds, distances = read_pair(model, material)
    told = read_told(model, material, members)
    rows = {
        "geometry": [
            [material.layers[-1], "fisher_rao", *mean_interval(distances, seed=boot, support=(0, math.pi))],
            *_paired_rows(clouds, base, material, profile.geometry.subspace, boot),
            *_cloud_rows(clouds, material, ""),
            *_cloud_rows(base, material, "_base"),
            *_told_rows(told, material, "", boot),
            *_told_rows(told_base[members], material, "_base", boot),
        ],
        **_direction_rows(profile, material, base, clouds, told_base, [p.name for p in pool], sets, members),
    }
    if profile.geometry.infomec:
        sides = (("", told), ("_base", told_base[members]))
        draws = min(INFOMEC_DRAWS, profile.geometry.permutations)
        # Thousands of tiny fits, in which two threads take three times as long as one.
        with threadpool_limits(1):
            rows["infomec"] = [
                [material.layers[-1], name + suffix, *row]
                for suffix, states in sides
                for name, *row in infomec.told_apart(states[:, :, -1], draws, profile.seeds.evaluation)
            ]
    return rows


def _direction_rows(
    profile, material: Material, base, arm, told, names, sets, members
) -> dict[str, list[list]]:
    """Rows of `directions`, `set_shares` and `projection`, without arm and seed."""
    spec = profile.geometry
    subsets = measures.random_subsets(len(told), len(members), spec.permutations, profile.seeds.evaluation)
    shares, by_set, points = [], [], []
    for i, layer in enumerate(material.layers):
        displacement = arm.means[:, i] - base.means[:, i]
        effects = told[:, :, i] - base.means[:: material.told_step, i]
        directions = effects.mean(1)
        basis = measures.span_basis(directions[members])
        if not displacement.any() or not basis.size:
            shares.append([layer] + [float("nan")] * 8)
            continue
        observed = _share_interval(displacement, effects[members], material.told_step)
        null = measures.subset_shares(displacement, directions, subsets)
        isotropic, ends = basis.shape[1] / basis.shape[0], np.quantile(null, [0.025, 0.975])
        p_value = measures.permutation_p(observed.value, null)
        shares.append([layer, *observed, isotropic, null.mean(), *ends, p_value])
        by_set += [
            [layer, name, measures.displacement_share(displacement, directions[places])]
            for name, places in sets.items()
        ]
        unit = np.sqrt((base.tokens[i].astype(np.float64) ** 2).sum(1).mean())
        own = [names[member] for member in members]
        points += _points(layer, "principle", own, directions[members] @ basis[:, :2] / unit)
        points += _points(layer, "displacement", range(len(displacement)), displacement @ basis[:, :2] / unit)
    return {"directions": shares, "set_shares": by_set, "projection": points}


def _encoded(profile, store: Store, tokenizer) -> tuple[list[list[int]], list[list[list[int]]], int]:
    """Prompts without a principle; every n-th of them under each principle of the pool; and n."""
    from enigma.llm.prompts import encode, messages

    questions = load_questions(profile.questions, "heldout", profile.geometry.prompts, profile.seeds.data)
    style = profile.prompts.model_dump()
    step = max(2 if len(questions) >= 12 else 1, math.ceil(len(questions) / MAX_TOLD))
    pool, _ = _principles(profile, store)
    told = [[encode(tokenizer, messages(q, p.text, **style)) for q in questions[::step]] for p in pool]
    return [encode(tokenizer, messages(q, None, **style)) for q in questions], told, step


def _material(profile, store: Store, tokenizer, completions: list[list[int]], model) -> Material:
    from enigma.llm.scoring import shared_prefix

    prompts, told, step = _encoded(profile, store, tokenizer)
    count = model.config.get_text_config().num_hidden_layers
    return Material(
        prompts=prompts,
        completions=completions,
        told=told,
        told_step=step,
        picked=pick_tokens(completions, profile.seeds.evaluation),
        prefix=prompts[0][: shared_prefix([*prompts, *chain.from_iterable(told)])],
        layers=sorted(range(count, 0, -math.ceil(count / MAX_LAYERS))),
        batch_size=profile.geometry.batch_size,
    )


def _paired_rows(arm: Clouds, base: Clouds, material: Material, subspace: int, seed: int) -> list[list]:
    """Measures between the two models' states at the same tokens."""
    rows, owner = [], material.owner
    moved = np.linalg.norm(arm.means - base.means, axis=2) / np.linalg.norm(base.means, axis=2)
    for i, layer in enumerate(material.layers):
        x, y = arm.tokens[i], base.tokens[i]
        few = [torch.from_numpy(cloud[::2]) for cloud in (x, y)]
        found = {
            "displacement": mean_interval(moved[:, i], seed=seed, support=(0, math.inf)),
            "sinkhorn": measures.jackknife_interval(
                lambda keep, few=few: sinkhorn_divergence(few[0][keep], few[1][keep]).item(),
                owner[::2],
                support=(0, math.inf),
            ),
            "cka": measures.jackknife_interval(
                lambda keep, x=x, y=y: measures.linear_cka_debiased(x[keep], y[keep]), owner, support=(-1, 1)
            ),
            "principal_angle": measures.jackknife_interval(
                lambda keep, x=x, y=y: measures.principal_angles(x[keep], y[keep], subspace)[0],
                owner,
                support=(0, math.pi / 2),
            ),
        }
        rows += [[layer, name, *interval] for name, interval in found.items()]
    return rows


def _cloud_rows(clouds: Clouds, material: Material, suffix: str) -> list[list]:
    """Measures of one model's states alone."""
    rows = []
    for layer, x in zip(material.layers, clouds.tokens, strict=True):
        for measure in CLOUD_MEASURES:
            options = {"support": (-1, 1)} if measure is measures.anisotropy else {"positive": True}
            interval = measures.jackknife_interval(
                lambda keep, x=x, measure=measure: measure(x[keep]), material.owner, **options
            )
            rows.append([layer, measure.__name__ + suffix, *interval])
    return rows


def _told_rows(told: np.ndarray, material: Material, suffix: str, seed: int) -> list[list]:
    """How well the states show which principle is in the prompt, each question's own mean taken away."""
    count, prompts = told.shape[:2]
    labels, groups = np.repeat(np.arange(count), prompts), np.tile(np.arange(prompts), count)
    rows = []
    for i, layer in enumerate(material.layers):
        x = (told[:, :, i] - told[:, :, i].mean(0)).reshape(count * prompts, -1)
        ratio = measures.jackknife_interval(
            lambda keep, x=x: measures.variance_ratio(x[keep], labels[keep]), groups, positive=True
        )
        hits = measures.classifier_hits(x, labels, groups).reshape(count, prompts).mean(0)
        accuracy = mean_interval(hits, seed=seed, support=(0, 1))
        rows += [[layer, f"separability{suffix}", *ratio], [layer, f"probe_accuracy{suffix}", *accuracy]]
    return rows


def _share_interval(displacement: np.ndarray, effects: np.ndarray, step: int) -> Interval:
    """`displacement_share` (prompts, d) in the span of the mean effects (principles, prompts [::step], d).

    Every step-th prompt was read with the principles: a unit of the jackknife is such a prompt and those up to the next.
    """
    return measures.jackknife_interval(
        lambda keep: measures.displacement_share(displacement[keep], effects[:, keep[::step]].mean(1)),
        np.arange(len(displacement)) // step,
        positive=True,
        support=(0, 1),
    )


def _points(layer: int, kind: str, names, coordinates: np.ndarray) -> list[list]:
    padded = np.pad(coordinates, ((0, 0), (0, 2 - coordinates.shape[1])))
    return [[layer, kind, str(name), *pair] for name, pair in zip(names, padded, strict=True)]


# ---- tables --------------------------------------------------------------------------------------------------------


def tables(profile, raw: dict, earlier) -> dict[str, pd.DataFrame]:
    """The tables of `CAPTIONS`: the rows of all runs."""
    return {name: _frame(raw["runs"], name) for name in COLUMNS}


def _frame(runs: list[dict], name: str) -> pd.DataFrame:
    rows = [[run["arm"], run["seed"], *row] for run in runs for row in run.get(name, [])]
    frame = pd.DataFrame(rows, columns=["arm", "seed", *COLUMNS[name]])
    texts = ("measure", "kind", "name", "set")
    return frame.astype({column: float for column in COLUMNS[name][1:] if column not in texts})


def run(profile, results) -> dict[str, pd.DataFrame]:
    """Stage 4: measure every run against the untrained model. Returns and writes the tables."""
    return stages.run(sys.modules[__name__], profile, results)
