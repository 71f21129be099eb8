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
# Each claim has a rule that was written down before the run. A claim that does not reproduce is a finding, and is drawn as one. What this
# profile is too small for says so: *not tested at this size*.

# %% tags=["parameters"]
profile = "smoke"
root = "../results"

# %%
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
# How each verdict came about. `detectable` is the smallest effect that a run like this one finds in four of five cases.

# %%
shown = tables["claims"][["id", "claim", "measure", "value", "low", "high", "detectable", "verdict", "paper"]]
shown.style.hide(axis="index").format(precision=3, na_rep="").set_properties(
    **{"text-align": "left", "vertical-align": "top"}
)

# %%
for row in tables["claims"].itertuples():
    print(f"{row.id}: {row.verdict}\n  rule: {row.rule}\n  found: {row.note}\n")

# %% [markdown]
# ## What each term does
#
# Every arm against plain GRPO of the same seed.

# %%
figures.make(experiment, results, "fig10_ablation")

# %% [markdown]
# ## Does SI predict what training does?

# %%
figures.make(experiment, results, "fig11_prediction")

# %% [markdown]
# ## The paper's setting and this one

# %%
tables["setting"].style.hide(axis="index").set_properties(**{"text-align": "left", "vertical-align": "top"})
