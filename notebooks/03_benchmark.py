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
# # 3. Benchmarks
#
# lm-eval, in memory, on the base model and every arm, all on the same items and without any principle in the prompt.

# %% tags=["parameters"]
profile = "cpu"
root = "../results"

# %%
from enigma import benchmark, figures
from enigma.profile import load_profile
from enigma.results import Results

experiment = load_profile(profile)
results = Results(experiment, root)

# %%
tables = benchmark.run(experiment, results)

# %%
tables["benchmarks"]

# %% [markdown]
# Paired differences, item by item, with bootstrap intervals and Holm-corrected p-values.

# %%
tables["benchmark_differences"]

# %%
figures.make(experiment, results, "fig3_benchmarks");
