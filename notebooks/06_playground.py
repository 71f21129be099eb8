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
# # 6. Playground: models side by side
#
# **Question.** Does a trained model follow a principle in a way that you can see?
#
# Type a question and choose a principle. The untrained model, plain GRPO and ENIGMA answer it, greedily. Beside each answer stands the
# posterior over the principles (eq. 9): which one the *untrained* model believes the answer was written under. Nothing is trained; the
# adapters are the published ones. `make reproduce` does not run this notebook.

# %%
question = "How can I keep bread fresh for longer?"
principle = "be-brief"  # a name of the pool, or a text of your own

# %%
from enigma import figures
from enigma.data.principles import load_pool
from enigma.errors import InputError
from enigma.llm.playground import UNTRAINED, published, side_by_side
from enigma.profile import load_profile
from enigma.record.results import Results

experiment = load_profile("cpu")
reference = Results.reference(experiment)

# %%
pool = {p.name: p.text for p in load_pool(experiment.principles.pool)}
try:
    adapters = published(reference.folder / "adapters", ["grpo-s0", "enigma_high-s0"])
    chosen = list(reference.read_table("selection").query("set == 'high'")["principle"])
except InputError as nothing:
    print(f"Only the untrained model: {nothing}")
    adapters, chosen = {UNTRAINED: None}, list(pool)[:4]

# %%
answers = side_by_side(
    experiment.model,
    adapters,
    question,
    pool.get(principle, principle),
    [pool[name] for name in chosen],
    experiment.prompts.model_dump(),
)
names = {text: name for name, text in pool.items()}
figures.table(answers.rename(columns=names), f"{question} ({principle})", 2)

# %% [markdown]
# A high number in the column of your principle: the answer gives it away. Equal numbers: nobody could see which one it was. A word of warning: the models have
# 135 million parameters and were trained for a few steps.
