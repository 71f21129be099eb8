"""The tables of stage 2 from its runs: every step, every group, and whether a run learned."""

import hashlib

import numpy as np
import pandas as pd

from enigma.method.rewards import graded_format, strict_format
from enigma.method.stats import mean_interval


def tables(profile, raw: dict) -> dict[str, pd.DataFrame]:
    """`training`, `training_groups` and `training_checks`. Rewards are computed from the completions themselves."""
    steps, groups, checks = [], [], []
    for run in raw["runs"]:
        rollouts = pd.DataFrame(run["rollouts"])
        rollouts["graded"] = rollouts.completion.map(graded_format)
        rollouts["strict"] = rollouts.completion.map(strict_format).astype(float)
        head = {"arm": run["arm"], "seed": run["seed"]}
        mine = pd.DataFrame(run["steps"])
        rewards = (
            rollouts.groupby("step")[["graded", "strict"]].mean().reindex(mine.step).add_prefix("reward_")
        )
        mine.insert(1, "reward_graded", rewards.reward_graded.to_numpy())
        mine.insert(2, "reward_strict", rewards.reward_strict.to_numpy())
        own_groups = _groups(rollouts)
        steps.append(pd.DataFrame(head, index=mine.index).join(mine))
        groups.append(pd.DataFrame(head, index=own_groups.index).join(own_groups))
        checks.append(head | _check(mine, own_groups, profile.seeds.bootstrap))
    training, training_groups = (pd.concat(frames, ignore_index=True) for frames in (steps, groups))
    return {"training": training, "training_groups": training_groups, "training_checks": pd.DataFrame(checks)}


def _groups(rollouts: pd.DataFrame) -> pd.DataFrame:
    """One row for each GRPO group. Questions are named by a hash of their text."""
    groups = rollouts.groupby(["step", "question", "principle"], sort=False)
    table = groups.agg(
        reward_graded=("graded", "mean"), reward_strict=("strict", "mean"), spread=("graded", "std")
    )
    table = table.reset_index()
    table["question"] = [hashlib.sha256(text.encode()).hexdigest()[:12] for text in table["question"]]
    return table


def _check(steps: pd.DataFrame, groups: pd.DataFrame, seed: int) -> dict:
    """A run's gain in graded reward, and whether there was any signal to learn from.

    The interval of the gain is over groups, first and last fifth of the steps as independent means (Welch by parts).
    """
    fifth = max(1, len(steps) // 5)
    start = groups[groups.step <= steps.step.iloc[fifth - 1]].reward_graded
    end = groups[groups.step >= steps.step.iloc[-fifth]].reward_graded
    a, b = mean_interval(end, seed=seed), mean_interval(start, seed=seed)
    gain = a.value - b.value
    return {
        "steps": len(steps),
        "reward_start": b.value,
        "reward_end": a.value,
        "gain": gain,
        "gain_low": gain - np.hypot(a.value - a.low, b.high - b.value),
        "gain_high": gain + np.hypot(a.high - a.value, b.value - b.low),
        "zero_spread_share": steps.zero_spread.mean(),
        "status": "no signal" if (steps.zero_spread == 1).all() else "ok",
    }
