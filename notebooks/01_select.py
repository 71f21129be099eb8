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
# **Question.** An organisation has principles such as "be brief" or "weigh who could be harmed". Ask a model to follow one.
# Can you see in what it writes which one it was? If not, training on that principle has nothing to hold on to.
#
# **How it is measured.** The untrained model answers questions $x$ under each of $K$ principles $c_1 \dots c_K$. Every completion $y_i$ is
# scored under all of them, and Bayes' rule says how likely it is that it was written under $c_k$:
#
# $$S_{ik} = \sum_t \log \pi(y_{i,t} \mid y_{i,<t}, x, c_k) \tag{8}$$
#
# $$\pi_{ik} = p(c_k \mid y_i, x) = \frac{e^{S_{ik}}}{\sum_{k'} e^{S_{ik'}}} \tag{9}$$
#
# How far the posterior lies above guessing is the information in the text about its principle. As a share of all there is to know, it is
# the **Sufficiency Index**:
#
# $$SI = \frac{I(Y; C \mid X)}{\log K} \tag{11}$$
#
# 1 means that the text gives its principle away, 0 that it says nothing. The paper's own formula is not known here; this one is ours.
# Equations are numbered as in docs/method.md.

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
# Blue principles make up the high-SI set, orange ones the low-SI set; a profile says which of them its arms train on. A hollow point is the same text read
# under *paraphrases* of the principles: where it lies far to the left of its filled point, the text mostly repeats the principle's own
# words. The sets below the line are chosen as sets, with no two principles of one family, so they are not simply the top and the bottom of
# the list.

# %%
figures.make(experiment, results, "fig1_sufficiency")

# %%
single = (
    tables["sufficiency"]
    .query("level == 'principle' and span == 'reasoning'")
    .sort_values("si", ascending=False)
)
columns = ["name", "family", "si", "si_low", "si_high", "si_plain"]
figures.table(
    single[columns].reset_index(drop=True),
    "SI of each principle with its 95 % interval; si_plain lets a completion speak for its own principle alone (eq. 10)",
)

# %% [markdown]
# How many completions repeat a content word of their own principle, and how many one of another principle? The difference is echo.

# %%
figures.table(tables["echo"], "Shares of completions that repeat words", 2)

# %% [markdown]
# ## Would other questions choose the same?
#
# Bars near 100 % are safe choices. Where two halves of the questions do not rank the principles alike, the ranking is noise.

# %%
figures.make(experiment, results, "fig2_stability")

# %%
figures.table(
    tables["test_retest"],
    "Rank correlation between two halves of the questions; full: stepped up (eq. 29)",
    2,
)

# %% [markdown]
# ## The sets that stage 2 trains on

# %%
figures.table(tables["selection"], "The chosen sets")

# %% [markdown]
# **What to take from it.** Look at the distance between the two sets in the first figure: that is the contrast which stage 2 trains on, and
# stage 5 asks whether it mattered. In the smoke profile the model is random, so all of this is zero.
