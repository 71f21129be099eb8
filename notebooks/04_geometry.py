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
# **How it is measured.** Every model reads the same held-out texts, token by token. Between the untrained model and each arm we compare clouds
# of hidden states, layer by layer: the *Sinkhorn divergence* (eq. 6: how much work it is to move one cloud into the other), the
# *displacement* as a share of the state's norm, and the shape of the cloud, such as its *effective rank* (eq. 18: how many directions it
# really uses).
#
# Then the paper's own picture, *principles as directions*. A principle in the prompt moves the untrained model's states; does training move them
# the same way? With $P$ the projection on the directions of the arm's principles, and $D_i$ the displacement of prompt $i$, the share is
#
# $$\frac{\sum_i \Vert P D_i \Vert^2}{\sum_i \Vert D_i \Vert^2} \tag{22}$$

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
# Lower is nearer to the untrained model. Arms with the Sinkhorn term are meant to lie below the others. Shapes that no arm changed are not
# drawn; the caption names them.
#
# Each arm's displacement along its own principles (points) against as many principles drawn from the pool (band). Only points above the band
# say that training followed *these* principles; inside the band it followed what any principle in the prompt does.

# %%
figures.make(experiment, results, "fig8_directions")

# %%
wanted = ["fisher_rao", "sinkhorn", "displacement", "cka", "effective_rank", "intrinsic_dimension"]
rows = tables["geometry"].query("measure in @wanted").sort_values("layer", kind="stable")
figures.table(
    rows.pivot_table(index=["layer", "arm"], columns="measure", values="value", sort=False),
    "Each arm against the untrained model, mean over seeds",
)
