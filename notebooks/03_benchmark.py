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
# **How it is measured.** All models are asked the same items through lm-eval, in memory, without a principle. Beside the accuracy stands the
# *margin*, in nats for each character: the log-probability $\ell_j$ of the right choices, each divided by its length $n_j$, minus the wrong ones'.
#
# $$m = \mathrm{mean}_{right} \frac{\ell_j}{n_j} - \mathrm{mean}_{wrong} \frac{\ell_j}{n_j} \tag{25}$$
#
# It moves long before an answer changes.
#
# **Sensitivity comes first.** A small model guesses on many benchmarks, and where the untrained model guesses, no arm can be seen to be worse.
# Such a task (its margin with the choices' prior taken off, eq. 26, is not clearly above zero) is shown and judges nothing.

# %% tags=["parameters"]
profile = "smoke"
root = "../results"

# %%
from enigma import figures
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import benchmark
from enigma.tasks import robustness

experiment = load_profile(profile)
results = Results(experiment, root)

# %%
tables = benchmark.run(experiment, results)

# %%
figures.make(experiment, results, "fig5_benchmarks")

# %% [markdown]
# On the right, a point left of the line: this arm has become less sure of the right answers than the untrained model was. Only where the
# whole interval lies left of it is that more than the luck of the items.

# %%
scores = tables["benchmarks"]
wanted = ["acc", "margin", "gold_probability", "strict_format"]
figures.table(
    scores[scores["metric"].isin(wanted)].pivot_table(
        index=["task", "metric", "sensitive"], columns="arm", values="value", sort=False
    ),
    "Every model on the same items, mean over seeds",
)

# %% [markdown]
# `strict_format` here is of greedy answers without a principle. Sampled answers under a principle, as in training, keep the format far less
# often: see the end of notebook 2.
#
# Paired differences to the untrained model, with intervals over items and p-values corrected by Holm for the whole table:

# %%
changed = tables["benchmark_differences"].query("versus == 'base' and metric == 'margin'")
columns = ["arm", "seed", "task", "difference", "low", "high", "n", "p_holm"]
figures.table(changed[columns].reset_index(drop=True), "Margin, arm minus untrained, paired by item", 4)

# %% [markdown]
# ## Robustness
#
# The same item under changes that should not matter:

# %%
if robustness.TASK in experiment.benchmarks.tasks:
    print(robustness.example(item=0))

# %%
figures.make(experiment, results, "fig6_robustness")

# %% [markdown]
# The further right, the more the change hurt. *Worst case* takes for each item the change that hurt it most. Compare an arm with the untrained
# model (grey), not with zero.
#
# ## Adherence
#
# Is the response that follows a principle likelier than one that breaks it? Each pair is asked under the principle and under its opposite,
# where the other response is right, so a model that does not read the principle has a mean of one half.

# %%
overall = tables["adherence"].query("principle == 'all'").drop(columns="principle")
figures.table(overall.reset_index(drop=True), "Share of pairs in which the right response is likelier")
