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
# # 2. Train every arm
#
# **Question.** What does each term of the loss do to the model?
#
# **The loss** (docs/method.md, equations 1 to 7), one loop and one backward pass:
#
# $$L = L_{GRPO} + \lambda_{SAMI} L_{SAMI} + \lambda_{OT} \max(0, S_\varepsilon - b)$$
#
# - *GRPO* compares a group of completions of one prompt and makes the better-than-average ones likelier. Better means here only:
#   the text has the *format* `<reasoning>...</reasoning><answer>...</answer>`. No answer is checked.
# - *SAMI* is a symmetric InfoNCE loss: which principle wrote this completion, and which completion did this principle write?
# - The *Sinkhorn divergence* $S_\varepsilon$ measures how far the hidden states have moved from the untrained model's. Up to the budget
#   $b$ it costs nothing.
#
# An *arm* is one choice of coefficients and of a set of principles. All arms see the same questions in the same order.
#
# A run that is done is not trained again. With `%env ENIGMA_JOBS=4` before the training cell so many runs are trained side by side.

# %% tags=["parameters"]
profile = "smoke"
root = "../results"

# %%
from enigma import figures
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import legibility, train

experiment = load_profile(profile)
results = Results(experiment, root)

# %%
tables = train.run(experiment, results)

# %% [markdown]
# ## Did each run learn?
#
# `zero_spread_share` is the share of steps in which all completions of every group had the same reward: nothing to learn from.

# %%
tables["training_checks"].round(3)

# %%
figures.make(experiment, results, "fig3_training")

# %% [markdown]
# ## Is the principle in the text, and can somebody else read it there?
#
# A model could learn to mark its principles by a private code. So the untrained model reads the completions too. Where the filled point
# rises and the hollow one does not, it is a code.

# %%
carried = legibility.run(experiment, results)
figures.make(experiment, results, "fig4_legibility")

# %%
columns = ["arm", "set", "row_bound", "row_bound_base_critic", "perplexity_base", "reward_strict"]
carried["legibility"][columns].round(3)

# %% [markdown]
# ## What the models write
#
# `sampled` is drawn at temperature 1 under a principle, as in training: at every step some of the probability lies on odd tokens, so a
# small model rambles. `greedy` takes the likeliest token each time, without a principle, and reads much tidier. That is also why a
# format reward is low when sampled and high when greedy.

# %%
shown = carried["transcripts"].drop_duplicates(["arm", "seed"])[
    ["arm", "principle", "question", "sampled", "greedy"]
]
shown.style.hide(axis="index").set_properties(
    **{"white-space": "pre-wrap", "text-align": "left", "vertical-align": "top"}
)
