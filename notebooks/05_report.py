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
# # 5. The paper's claims, and what was measured here
#
# Each claim has a decision rule that was written down before the run. A claim that does not reproduce is a finding.

# %% tags=["parameters"]
profile = "cpu"
root = "../results"

# %%
from enigma.figures import all as figures
from enigma.profile import load_profile
from enigma.record import report
from enigma.record.results import Results
from enigma.stages import claims, prediction

experiment = load_profile(profile)
results = Results(experiment, root)

# %%
table = claims.run(experiment, results)
table[["id", "claim", "measure", "value", "low", "high", "verdict", "paper"]]

# %%
figures.make(experiment, results, "fig7_claims")
# %% [markdown]
# Does SI, measured before training, predict steadiness and benchmarks? One point for each set that an arm was trained on.

# %%
prediction.run(experiment, results)["prediction"]

# %%
figures.make(experiment, results, "fig11_prediction")
# %% [markdown]
# How each verdict came about.

# %%
for row in table.itertuples():
    print(f"{row.id} {row.verdict}\n  rule: {row.rule}\n  note: {row.note}\n")

# %% [markdown]
# The run record, and what is read without a kernel: an index, the page `report.html`, and a record for other programs.

# %%
for path in [results.write_record(), *report.publish(experiment, results)]:
    print(path.name)
