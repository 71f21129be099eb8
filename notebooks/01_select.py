# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Which principles does a chain of thought carry?
#
# The untrained model answers questions under every principle of a pool. Each completion is then scored under all
# principles it competes with. How well the scores tell which principle wrote a completion is a lower bound on the
# mutual information between principle and text, $I(Y;C|X)$, and the Sufficiency Index is that bound as a share of
# its ceiling: $SI = I_{row} / \log K$ (this project's definition; the paper's formula is not known here).

# %% tags=["parameters"]
profile = "cpu"
root = "../results"

# %%
from enigma.figures import all as figures
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import select as sufficiency

experiment = load_profile(profile)
results = Results(experiment, root)

# %%
tables = sufficiency.run(experiment, results)

# %% [markdown]
# Principles from the highest to the lowest SI, over the reasoning span alone. Bounds in nats.

# %%
table = tables["sufficiency"]
columns = ["name", "family", "si", "si_low", "si_high", "row_bound", "column_bound"]
table[(table.level == "principle") & (table.span == "reasoning")].sort_values("si", ascending=False)[columns]

# %%
figures.make(experiment, results, "fig1_sufficiency")
# %% [markdown]
# Would other questions select the same principles? How often each is chosen when the questions are drawn again, and how
# well the ranking on one half of the questions agrees with the ranking on the other.

# %%
figures.make(experiment, results, "fig10_stability")
# %%
tables["selection_stability"].sort_values("in_high", ascending=False)

# %%
tables["test_retest"]

# %% [markdown]
# The sets that stage 2 trains on.

# %%
results.read_yaml("selection")
