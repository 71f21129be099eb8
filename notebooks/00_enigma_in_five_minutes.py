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
# # 0. ENIGMA in five minutes
#
# The whole method on one question: a matched set, its score matrix, the Sufficiency Index, the three terms of the loss, and one step of training.
# Takes about two minutes on two cores. Equations are numbered as in docs/method.md.

# %% tags=["parameters"]
question = "How can I keep bread fresh?"

# %%
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch

from enigma.data.principles import load_pool
from enigma.llm.loading import load_model
from enigma.llm.matched import sample_and_score
from enigma.method.infonce import mutual_information_bounds, sami_loss
from enigma.method.rewards import graded_format
from enigma.method.sufficiency import principle_information, sufficiency_index
from enigma.method.transport import sinkhorn_divergence
from enigma.profile import load_profile

settings = load_profile("cpu")
model, tokenizer = load_model(settings.model)
style = settings.prompts.model_dump()

# %% [markdown]
# ## A matched set
#
# One question, four principles, four completions under each. They differ in the principle, never in the question.

# %%
principles = [
    p
    for p in load_pool("default")
    if p.name in ("be-brief", "number-the-steps", "use-an-analogy", "weigh-harm")
]
[matched] = sample_and_score(
    model,
    tokenizer,
    [question],
    [p.text for p in principles],
    style,
    samples=4,
    max_tokens=48,
    batch_size=16,
    seed=0,
)
for k in range(len(principles)):
    print(f"--- {principles[k].name}\n{matched['texts'][4 * k]}\n")

# %% [markdown]
# ## Its score matrix (eq. 8)
#
# Row: a completion. Column: the principle that it is read under. Shown is the posterior $\pi_{ik}$ (eq. 9): bright on the diagonal blocks means
# that the text gives its principle away.

# %%
scores = torch.tensor(matched["completion"], dtype=torch.float64)
source = torch.tensor(matched["source"])
sns.heatmap(
    torch.softmax(scores, 1).numpy(), xticklabels=[p.name for p in principles], cmap="viridis", vmin=0, vmax=1
)
plt.ylabel("completion")
# %% [markdown]
# ## The Sufficiency Index (eq. 11)

# %%
ratio = principle_information([scores.numpy()])
dict(
    zip(
        [p.name for p in principles],
        np.round(sufficiency_index(ratio.information / ratio.weight, 4)[:, 0], 3),
    )
)

# %% [markdown]
# ## The three terms
#
# GRPO's reward is the format alone; SAMI asks which principle wrote what; the Sinkhorn divergence says how far two clouds of hidden states
# lie apart, here two clouds of random points.

# %%
rewards = [graded_format(text) for text in matched["texts"]]
bounds = mutual_information_bounds(scores, source)
print(f"format rewards        {np.round(rewards, 2)}")
print(
    f"SAMI loss (eq. 5)     {sami_loss(scores, source):.3f} nats; row bound {bounds.row:.3f} of log 4 = {np.log(4):.3f}"
)
generator = torch.Generator().manual_seed(0)
cloud = torch.randn(64, 8, generator=generator)
for shift in (0.0, 0.5, 1.0):
    print(
        f"Sinkhorn (eq. 6)      clouds {shift} apart: {sinkhorn_divergence(cloud + shift, cloud, epsilon=0.05):.3f}"
    )

# %% [markdown]
# ## One step, and what it changed
#
# Two principles, four completions each; LoRA on the attention; every term at once. After it the same completions are scored again: what was above
# its group's average has become likelier.

# %%
from datasets import Dataset
from peft import LoraConfig

from enigma import EnigmaConfig, EnigmaTrainer
from enigma.llm.matched import score
from enigma.llm.prompts import encode, messages
from enigma.method.rewards import graded_format_reward
from enigma.stages.train import matched_prompts

before = scores.numpy()[np.arange(16), matched["source"]]
rows = matched_prompts([question], principles, 2, seed=0, **style)
config = EnigmaConfig(
    output_dir="../results/five_minutes",
    max_steps=1,
    per_device_train_batch_size=8,
    num_generations=4,
    num_principles=2,
    max_completion_length=48,
    learning_rate=1e-3,
    lambda_sami=0.02,
    lambda_ot=5.0,
    ot_budget=0.02,
    logging_steps=1,
    report_to="none",
    save_strategy="no",
    use_cpu=not torch.cuda.is_available(),
    bf16=model.dtype == torch.bfloat16,
    disable_tqdm=True,
)
trainer = EnigmaTrainer(
    model,
    graded_format_reward,
    config,
    Dataset.from_list(rows),
    processing_class=tokenizer,
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
trainer.train()
# %%
log = trainer.state.log_history[0]
{
    name: round(log[name], 4)
    for name in ("loss/grpo", "loss/sami", "loss/ot", "sami/row_bound", "ot/divergence", "reward")
}

# %%
prompts = [encode(tokenizer, messages(question, p.text, **style)) for p in principles]
ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in matched["texts"]]
after = np.array(score(trainer.model.eval(), prompts, ids, torch.tensor([len(i) for i in ids]))[1])[
    np.arange(16), matched["source"]
]
print(f"mean change of the log-probability of the 16 completions: {np.mean(after - before):+.2f} nats")
