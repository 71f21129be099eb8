# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. The paper's claims, and what was measured here
#
# **Question.** Which of the paper's claims does this run support?
#
# Each claim has a rule that was written down before the run (docs/method.md, table 1). Every part of a rule is an effect with an interval,
# signed so that above zero favours the claim, and a size that was called negligible beforehand. Above zero: *supported*. Below zero, or too
# small to matter: *not supported*. Otherwise *undecided*. What this profile is too small for says so: *not tested at this size*. A claim that
# does not reproduce is a finding, and is drawn as one.

# %% tags=["parameters"]
profile = "smoke"
root = "../results"

# %%
from IPython.display import Markdown

from enigma import figures
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import claims

experiment = load_profile(profile)
results = Results(experiment, root)

# %%
tables = claims.run(experiment, results)
figures.make(experiment, results, "fig9_claims")

# %% [markdown]
# All effects are drawn in units of their own interval, so that they fit on one axis: an interval that touches the line is one half width away
# from it.
#
# How each verdict came about. `detectable` is the smallest effect that a run like this one finds in four of five cases (eq. 30).

# %%
columns = ["id", "claim", "measure", "value", "low", "high", "detectable", "verdict", "paper"]
figures.table(tables["claims"][columns], "Claims, effects and verdicts")

# %%
Markdown(
    "\n\n".join(
        f"**{row.id}, {row.verdict}.** *Rule:* {row.rule} *Found:* {row.note}"
        for row in tables["claims"].itertuples()
    )
)

# %% [markdown]
# ## What each term does
#
# Every arm against plain GRPO of the same seed. A point without an interval is one seed, and decides nothing.

# %%
figures.make(experiment, results, "fig10_ablation")

# %% [markdown]
# ## Does SI predict what training does?
#
# One point for each set of principles: its SI before training, and what became of the arm that was trained on it.

# %%
figures.make(experiment, results, "fig11_prediction")

# %% [markdown]
# ## What else would do the same job
#
# The neighbours of the method, each beside its control (docs/neighbours.md), where the profile has such arms.

# %%
figures.make(experiment, results, "fig12_neighbours")

# %% [markdown]
# ## The paper's setting and this one

# %%
figures.table(tables["setting"], "What the paper used, and what this run uses")
