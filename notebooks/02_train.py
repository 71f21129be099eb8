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
# **The loss.** One loop, one backward pass:
#
# $$L = L_{GRPO} + \lambda_{SAMI} L_{SAMI} + \lambda_{OT} \max(0, S_\varepsilon - b) \tag{7}$$
#
# - **GRPO** (eq. 2) compares the completions of one prompt and makes those above the group's mean reward likelier. The reward is the
#   *format* `<reasoning>...</reasoning><answer>...</answer>` alone, with part marks (eq. 1). No answer is checked.
# - **SAMI** (eq. 3 to 5) is a symmetric InfoNCE loss: which principle wrote this completion, and which completion did this principle write?
#
# $$L_{SAMI} = \frac{1}{2N} \sum_i \left( -\log \frac{e^{S_{i k(i)}}}{\sum_k e^{S_{ik}}} + \ell^{col}_i \right) \tag{5}$$
#
# - The **Sinkhorn divergence** $S_\varepsilon$ (eq. 6) is how much work it takes to move the cloud of hidden states into the untrained
#   model's. Up to the budget $b$ it costs nothing.
#
# An *arm* is one choice of the two coefficients and of a set of principles. All arms see the same questions in the same order. `grpo` has
# neither extra term.
#
# A run that is done is not trained again. With `%env ENIGMA_JOBS=4` before the training cell four runs are trained side by side.

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

# %% [markdown]
# Before a run's first update its first batch is checked. What could go wrong is printed in a line that begins with `preflight`, with the
# setting to change.

# %%
tables = train.run(experiment, results)

# %% [markdown]
# ## Did each run learn?
#
# `gain` is the last fifth of the steps minus the first. `zero_spread_share` is the share of steps in which all completions of every group had
# the same reward: nothing to learn from.

# %%
figures.table(
    tables["training_checks"],
    "Graded format reward of each run, with a 95 % interval of its gain over groups",
)

# %% [markdown]
# Each panel follows one measure over the steps. The reward is noisy, because it is the mean of few sampled completions; the *probe* beside it
# reads fixed texts and has no sampling noise (eq. 24 is taken from it). Below: does the information rise (what SAMI wants), and does the
# drift stay under the dashed budget (what the Sinkhorn term wants)?

# %%
figures.make(experiment, results, "fig3_training")

# %% [markdown]
# ## Is the principle in the text, and can somebody else read it there?
#
# A model could learn to mark its principles by a private code. So the untrained model reads the completions too (eq. 14). Where the filled
# point rises and the hollow one does not, it is a code; where the perplexity on the right explodes, the text has become odd.

# %%
carried = legibility.run(experiment, results)
figures.make(experiment, results, "fig4_legibility")

# %%
columns = ["arm", "seed", "set", "row_bound", "row_bound_base_critic", "perplexity_base", "reward_strict"]
figures.table(
    carried["legibility"][columns],
    "Held-out questions: information (nats) for the model itself and for the untrained reader, perplexity, strict format",
)

# %% [markdown]
# ## What the models write
#
# *sampled* is drawn at temperature 1 under a principle, as in training: at every step some of the probability lies on odd tokens, so a
# small model rambles. *greedy* takes the likeliest token each time, without a principle, and reads much tidier.
#
# The same holds for the format. `reward_strict` above is of **sampled** text **under a principle**, and near 0 for the untrained model; stage 3
# counts the format in **greedy** text **without a principle**, where the same untrained model keeps it in more than half of its answers. Two
# ways of asking, not a contradiction.

# %%
shown = carried["transcripts"].drop_duplicates(["arm", "seed"])
figures.table(
    shown[["arm", "principle", "question", "sampled", "greedy"]].reset_index(drop=True),
    "One question, each model",
)
