"""`python -m benchmarks.rates`: the learning rate of each optimiser, by the training reward alone.

Trains the arms of benchmarks/rates.yaml, three rates for each optimiser and a seed that nothing else uses, and writes
results/rates/. An interrupted sweep goes on where it stopped. Chosen is the rate whose reward is highest at the end: the one for
the profile `neighbours`, which trains for fewer steps.
"""

from pathlib import Path

import pandas as pd

from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import select, train

CAPTION = (
    "Graded format reward over the last fifth of {steps} steps, and its gain over the first fifth with a 95 % interval over "
    "groups, for three learning rates of each optimiser. chosen: the highest reward at the end."
)


def table(profile, checks: pd.DataFrame) -> pd.DataFrame:
    """One row for each arm, from the table `training_checks`."""
    arms = [profile.arms[arm] for arm in checks.arm]
    frame = checks[["reward_start", "reward_end", "gain", "gain_low", "gain_high"]].copy()
    frame.insert(0, "optimizer", [arm.optimizer for arm in arms])
    frame.insert(1, "learning_rate", [arm.learning_rate for arm in arms])
    frame["chosen"] = frame.index.isin(frame.groupby("optimizer").reward_end.idxmax())
    return frame


def main() -> None:
    profile = load_profile(Path(__file__).with_suffix(".yaml"))
    results = Results(profile)
    select.run(profile, results)
    frame = table(profile, train.run(profile, results)["training_checks"])
    caption = CAPTION.format(steps=profile.trainer.max_steps)
    results.write_table("rates", frame, caption, "benchmarks.rates", ("training_checks",))
    print(frame.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


if __name__ == "__main__":
    main()
