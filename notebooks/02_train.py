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
# # 2. Train every arm
#
# One loop, one backward pass: $L = L_{GRPO} + \lambda_{SAMI} L_{SAMI} + \lambda_{OT} \max(0, S_\epsilon - b)$.
# GRPO is paid for the *format* of the chain of thought and for nothing else. All arms see the same questions in the
# same order. A finished run is not trained again; an interrupted one goes on from its last checkpoint. Runs are trained
# in this process; with `%env ENIGMA_JOBS=4` before the next cell so many side by side, and with
# `%env ENIGMA_LAUNCH=accelerate launch --num_processes 8` each by several processes.

# %% tags=["parameters"]
profile = "cpu"
root = "../results"

# %%
from enigma.figures import all as figures
from enigma.profile import load_profile
from enigma.record.results import Results
from enigma.stages import train as training

experiment = load_profile(profile)
results = Results(experiment, root)

# %%
tables = training.run(experiment, results)

# %% [markdown]
# Did each run have something to learn from, and did it?

# %%
tables["training_checks"]

# %%
figures.make(experiment, results, "fig2_training")
# %% [markdown]
# Held-out questions after training: is the principle in the text (own critic), and can the untrained model still read
# it there (base critic)? A policy bound that rises while the base critic's falls is a private code.

# %%
tables["legibility"]

# %%
figures.make(experiment, results, "fig6_legibility")
# %% [markdown]
# The first two completions of the first and of the last step of each run.

# %%
training.transcripts(experiment, results, count=2)
