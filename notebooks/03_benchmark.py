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
# lm-eval, in memory, on the base model and every arm, all on the same items. Only the task that measures adherence has a
# principle in its prompts.

# %% tags=["parameters"]
profile = "cpu"
root = "../results"

# %%
from enigma.figures import all as figures
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import benchmark
from enigma.tasks import robustness

experiment = load_profile(profile)
results = Results(experiment, root)

# %%
tables = benchmark.run(experiment, results)

# %%
tables["benchmarks"]

# %% [markdown]
# Paired differences, item by item, with bootstrap intervals and Holm-corrected p-values over all rows of the table.

# %%
tables["benchmark_differences"]

# %%
figures.make(experiment, results, "fig3_benchmarks")
# %% [markdown]
# ## Robustness
#
# One item under every condition. The answer is the option whose text is the likeliest to follow.

# %%
print(robustness.example(item=20))

# %% [markdown]
# A model that guesses can be consistent, and an accurate one is right everywhere now and then by luck: `independent` is
# what answers of the same accuracies would give if they had nothing to do with each other.

# %%
tables["robustness"]

# %%
figures.make(experiment, results, "fig9_robustness")
# %% [markdown]
# ## Adherence
#
# Is the response that follows a principle likelier than one that breaks it? Each pair is asked under the principle and
# under its antithesis, where the other response is right, so a model that does not read the principle has a mean of one
# half.

# %%
tables["adherence"].query("principle == 'all'")

# %%
tables["adherence"].query("metric == 'acc' and principle != 'all'").pivot_table(
    index="principle", columns="arm", values="mean", sort=False
)

# %% [markdown]
# Adherence in what the models write: the bounds on the information that a completion carries about its principle, before
# training (`base`) and after it, from notebook 02.

# %%
results.read_table("legibility").filter(regex="arm|seed|set|^k$|row_bound")

# %% [markdown]
# How fast: prompts with all their choices, a second.

# %%
tables["benchmark_speed"]
