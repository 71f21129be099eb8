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
# # 3. Benchmarks
#
# **Question.** What did training cost the model, or give it, on tasks that it was not trained on?
#
# All models are asked the same items through lm-eval, in memory. **Sensitivity comes first**: a small model guesses on many benchmarks,
# and where the untrained model guesses, no arm can be seen to be worse. Such a task is shown and judges nothing. Beside the accuracy
# stands the *margin*: the log-probability per character of the right answer minus the mean of the wrong ones (docs/method.md, equations
# 25 to 27). It moves long before an answer changes.

# %% tags=["parameters"]
profile = "smoke"
root = "../results"

# %%
from enigma import figures
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import benchmark

experiment = load_profile(profile)
results = Results(experiment, root)

from enigma.tasks import robustness

# %%
tables = benchmark.run(experiment, results)

# %%
figures.make(experiment, results, "fig5_benchmarks")

# %% [markdown]
# On the right, a point left of the line: this arm has become less sure of the right answers than the untrained model was.

# %%
scores = tables["benchmarks"]
scores[scores["metric"].isin(["acc", "margin", "gold_probability", "strict_format"])].pivot_table(
    index=["task", "metric", "sensitive"], columns="arm", values="value", sort=False
).round(3)

# %% [markdown]
# Paired differences to the untrained model, with intervals over items and p-values corrected for the whole table.

# %%
changed = tables["benchmark_differences"].query("versus == 'base' and metric == 'margin'")
changed[["arm", "seed", "task", "difference", "low", "high", "n", "p_holm"]].round(4).reset_index(drop=True)

# %% [markdown]
# ## Robustness
#
# The same item under changes that should not matter:

# %%
print(robustness.example(item=3))

# %%
figures.make(experiment, results, "fig6_robustness")

# %% [markdown]
# ## Adherence
#
# Is the response that follows a principle likelier than one that breaks it? Each pair is asked under the principle and under its opposite,
# where the other response is right, so a model that does not read the principle has a mean of one half.

# %%
tables["adherence"].query("principle == 'all'").round(3).reset_index(drop=True)
