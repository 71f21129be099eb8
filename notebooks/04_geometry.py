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
# # 4. Geometry
#
# **Question.** Where did training move the hidden states, and along what?
#
# Every model reads the same held-out texts. Between the untrained model and each arm we compare clouds of hidden states, layer by layer:
# the *Sinkhorn divergence* (how much work it is to move one cloud into the other), the *displacement* as a share of the state's norm,
# and the *effective rank* (how many directions a cloud really uses). Then the paper's own picture: *principles as directions*. Being told
# a principle moves the untrained model's states; does training move them the same way (docs/method.md, equations 16 to 23)?

# %% tags=["parameters"]
profile = "smoke"
root = "../results"

# %%
from enigma import figures
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import geometry

experiment = load_profile(profile)
results = Results(experiment, root)

# %%
tables = geometry.run(experiment, results)

# %%
figures.make(experiment, results, "fig7_geometry")

# %% [markdown]
# Each arm's displacement along its own principles (points) against as many principles drawn from the pool (band). Only points above the band
# say that training followed *these* principles.

# %%
figures.make(experiment, results, "fig8_directions")

# %%
wanted = ["fisher_rao", "sinkhorn", "displacement", "cka", "effective_rank", "intrinsic_dimension"]
rows = tables["geometry"]
rows[rows["measure"].isin(wanted)].pivot_table(
    index=["arm", "layer"], columns="measure", values="value", sort=False
).round(3)
