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
# # 4. Geometry
#
# What training did to the hidden states, on held-out prompts and the same token ids for every model, and whether the
# displacement lies along the directions in which the principles themselves move the untrained model.

# %% tags=["parameters"]
profile = "cpu"
root = "../results"

# %%
from enigma.figures import all as figures
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import geometry

experiment = load_profile(profile)
results = Results(experiment, root)

# %%
tables = geometry.run(experiment, results)

# %%
tables["geometry"].pivot_table(index=["arm", "layer"], columns="measure", values="value", sort=False).round(4)

# %%
figures.make(experiment, results, "fig4_geometry")
# %% [markdown]
# The share of each arm's displacement that lies along its own principles, against as many principles drawn from the pool.

# %%
figures.make(experiment, results, "fig5_directions")
