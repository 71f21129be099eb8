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
# # 1. Which principles does a chain of thought carry?
#
# **Question.** An organisation has principles such as "be brief" or "weigh who could be harmed". Tell a model to follow one.
# Can you see in what it writes which one it was told? If not, training on that principle has nothing to hold on to.
#
# **How it is measured** (docs/method.md, equations 8 to 13). The untrained model answers questions $x$ under each of $K$
# principles $c_1 \dots c_K$. Every completion $y_i$ is scored under all of them: $S_{ik} = \log p(y_i \mid x, c_k)$. By Bayes' rule,
# $\pi_{ik} = \mathrm{softmax}_k S_{ik}$ is the probability that $y_i$ was written under $c_k$. How far it lies above guessing is
# the information that the text carries about its principle, and as a share of all there is to know it is the
#
# $$SI = \frac{I(Y; C \mid X)}{\log K}$$
#
# 1 means that the text gives its principle away, 0 that it says nothing. The paper's own formula is not known here; this one is ours.

# %% tags=["parameters"]
profile = "smoke"
root = "../results"

# %%
from enigma import figures
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import select

experiment = load_profile(profile)
results = Results(experiment, root)

# %%
tables = select.run(experiment, results)

# %% [markdown]
# ## The ranking
#
# Blue principles make up the high-SI set, orange ones the low-SI set; stage 2 trains on both. A hollow point is the same SI read
# under *paraphrases*: where it lies far to the left, the text mostly repeated the principle's own words.

# %%
figures.make(experiment, results, "fig1_sufficiency")

# %%
single = (
    tables["sufficiency"]
    .query("level == 'principle' and span == 'reasoning'")
    .sort_values("si", ascending=False)
)
single[["name", "family", "si", "si_low", "si_high", "si_plain"]].round(3).reset_index(drop=True)

# %% [markdown]
# How many completions repeat a content word of their own principle, and of another one?

# %%
tables["echo"].round(2)

# %% [markdown]
# ## Would other questions choose the same?
#
# Bars near 1 are safe choices. A ranking that two halves of the questions do not share is noise.

# %%
figures.make(experiment, results, "fig2_stability")

# %%
tables["test_retest"].round(2)

# %% [markdown]
# ## The sets that stage 2 trains on

# %%
tables["selection"].style.hide(axis="index")
