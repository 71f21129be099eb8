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
# **Question.** What is the method, on one example that you can see whole?
#
# ENIGMA fine-tunes a language model so that its *reasoning* carries an organisation's principles. There is no reward model: the only
# reward is the format of the text. Two more terms do the work, both computed from the same batch. Below you see each of them once, on one
# question and four principles, and then one step of training. It takes about two minutes on two idle cores. Equations are numbered as in
# docs/method.md.

# %% tags=["parameters"]
question = "How can I keep bread fresh?"
chosen = ["be-brief", "number-the-steps", "use-an-analogy", "weigh-harm"]
model_profile = "cpu"

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback

from enigma import EnigmaConfig, EnigmaTrainer, figures
from enigma.data.principles import load_pool
from enigma.llm.loading import load_model
from enigma.llm.matched import sample_and_score, score
from enigma.llm.prompts import encode, messages
from enigma.method.infonce import mutual_information_bounds, sami_loss
from enigma.method.rewards import graded_format, graded_format_reward
from enigma.method.sufficiency import sufficiency_index
from enigma.method.transport import sinkhorn_divergence
from enigma.profile import load_profile
from enigma.stages.train import matched_prompts

settings = load_profile(model_profile)
model, tokenizer = load_model(settings.model)
style = settings.prompts.model_dump()
K, G = len(chosen), 4  # principles, completions under each

# %% [markdown]
# ## 1. A matched set
#
# One question, four principles, four completions under each. They differ in the principle, never in the question.

# %%
principles = [p for p in load_pool("default") if p.name in chosen]
names, texts = [p.name for p in principles], [p.text for p in principles]
size = {"samples": G, "max_tokens": 48, "batch_size": K * G}
[matched] = sample_and_score(model, tokenizer, [question], texts, style, **size, seed=0)
first = pd.DataFrame({"principle": names, "text": texts, "completion": matched["texts"][::G]})
figures.table(first, "The first completion under each principle, sampled at temperature 1")

# %% [markdown]
# Sampled text of a small model rambles: at every step some of the probability lies on odd tokens. Some completions repeat the words of
# their principle. Such an *echo* is easily recognised and says little; stage 1 reads completions under paraphrases too, to see how much
# of SI is echo.
#
# ## 2. Its score matrix
#
# Each completion $y_i$ is read under *every* principle, not only its own:
#
# $$S_{ik} = \sum_t \log \pi(y_{i,t} \mid y_{i,<t}, x, c_k), \quad \pi_{ik} = \mathrm{softmax}_k S_{ik} \tag{8, 9}$$
#
# with $x$ the question and $c_k$ the $k$-th principle. A row is a completion, a column the principle that it is read under. Bright blocks
# on the diagonal mean that a text gives its principle away.

# %%
scores = torch.tensor(matched["completion"], dtype=torch.float64)
source = torch.tensor(matched["source"])
labels = [f"{names[k]} {i % G + 1}" for i, k in enumerate(source)]
posterior = torch.softmax(scores, 1).numpy()
plt.figure(figsize=(6, 5), layout="constrained")
sns.heatmap(posterior, xticklabels=names, yticklabels=labels, cmap="cividis", vmin=0, vmax=1)
plt.xticks(rotation=15)
plt.title("Posterior of each principle, for each completion", loc="left", fontsize=10)
plt.show()

# %% [markdown]
# ## 3. The Sufficiency Index
#
# For each principle, how far the logarithm of its posterior lies above that of guessing, a mean over the completions in which each
# counts by that posterior (12); as a share of all there is to know. 1: the text gives its principle away.
# 0: it says nothing. Measured before training, it says which principles a model's reasoning can carry at all. Here the whole completion
# is read; stage 1 reads the reasoning alone. What a principle is compared with matters too: SI is of a principle *among others*.
#
# $$SI_k = \frac{I_k}{\log K} \tag{11}$$
#
# $$I_k = \frac{\sum_i \pi_{ik} (\log K + \log \pi_{ik})}{\sum_i \pi_{ik}} \tag{12}$$

# %%
index = sufficiency_index([scores.numpy()])
figures.table(pd.DataFrame({"principle": names, "SI": index}), "From sixteen completions, so only roughly", 2)

# %% [markdown]
# ## 4. The three terms of the loss
#
# $$L = L_{GRPO} + \lambda_{SAMI} L_{SAMI} + \lambda_{OT} \, \mathrm{mean}_{layers} \max(0, S_\varepsilon - b) \tag{7}$$
#
# The two $\lambda$ are weights, $S_\varepsilon$ is the Sinkhorn divergence of hidden states with regularisation $\varepsilon$, and $b$ a
# budget of drift that costs nothing.
#
# **GRPO** makes completions likelier that earn more than their group's mean. The reward is the format alone (eq. 1), in steps of an eighth.
# Where a whole row below is equal, there is nothing to learn from it.

# %%
rewards = np.reshape([graded_format(text) for text in matched["texts"]], (K, G))
figures.table(pd.DataFrame(rewards, index=names, columns=range(1, G + 1)), "Format reward of each completion")

# %% [markdown]
# **SAMI** asks: which principle wrote this completion, and which completion did this principle write (eq. 3 to 5)? Its loss is low
# where the blocks of the score matrix are bright: 0 where every text gives its principle away, and the mean of the logarithms of how
# many there are to choose from, in a row and in a column, where it guesses. In training the scores are means over tokens, which keeps the
# gradient in proportion; the bound of the information (eq. 10) is made from their sums.

# %%
per_token = scores / torch.tensor(matched["tokens"])[:, None]
bounds = mutual_information_bounds(scores, source)
guessing = (np.log(K) + np.log(1 + (K - 1) * G)) / 2
print(f"SAMI loss {sami_loss(per_token, source):.3f} (guessing: {guessing:.3f})")
print(f"row bound {bounds.row:.3f} of log {K} = {np.log(K):.3f} nats")

# %% [markdown]
# **The Sinkhorn divergence** (eq. 6) says how much work it is to move one cloud of points into another: 0 for the same cloud. In training the
# clouds are hidden states before and after; here they are random points, moved apart.

# %%
cloud = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
apart = {d: float(sinkhorn_divergence(cloud + d, cloud, epsilon=0.05)) for d in (0.0, 0.5, 1.0)}
figures.table(
    pd.DataFrame(apart.items(), columns=["moved by", "divergence"]), "Two clouds of 64 points in 8 dimensions"
)

# %% [markdown]
# ## 5. One step of training, and what it changed
#
# Two of the principles, drawn by the seed, four completions under each; LoRA on the attention; all three terms in one backward pass.

# %%
rows = matched_prompts([question], principles, 2, seed=0, **style)
config = EnigmaConfig(
    output_dir="../results/five_minutes",
    max_steps=1,
    per_device_train_batch_size=2 * G,
    num_generations=G,
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
lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
trainer = EnigmaTrainer(
    model, graded_format_reward, config, Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora
)
trainer.remove_callback(PrinterCallback)
trainer.train()
log = trainer.state.log_history[0]
terms = ("loss/grpo", "loss/sami", "loss/ot", "sami/row_bound", "ot/divergence", "reward")
figures.table(pd.DataFrame({"term": terms, "value": [log[term] for term in terms]}), "What the step saw")

# %% [markdown]
# Terms stand with their weights: `loss/sami` is SAMI's loss times 0.02. The row bound is of log 2, since two principles are at stake.
# The drift is 0, because before the first step nothing has moved yet; GRPO's term is 0 because a group's advantages add up to 0, though its
# gradient does not. Did the step change what the model thinks of its own sixteen
# completions? They are scored again, each under its own principle, and compared with the reward that they earn.

# %%
prompts = [encode(tokenizer, messages(question, text, **style)) for text in texts]
ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in matched["texts"]]
lengths, own = torch.tensor([len(one) for one in ids]), (np.arange(K * G), matched["source"])
trained = trainer.model.eval()
after = np.array(score(trained, prompts, ids, lengths)[1])[own]
with trained.disable_adapter():
    before = np.array(score(trained, prompts, ids, lengths)[1])[own]
change = np.reshape(after - before, (K, G))
inside = ["yes" if name in {row["principle"] for row in rows} else "no" for name in names]
figures.table(
    pd.DataFrame(
        {
            "principle": names,
            "in the step": inside,
            "reward": rewards.mean(1),
            "change (nats)": change.mean(1),
        }
    ),
    "Mean change of a completion's log-probability after one step",
)

# %% [markdown]
# **How to read it.** A step of this size changes a whole completion's log-probability by a few tenths of a nat. In bfloat16 rounding
# alone moves it by about as much, so one step shows no effect of the reward: training is many such steps. Then what is there
# to ask? Whether the format is learned (notebook 2), what it costs elsewhere (3), how far the states moved (4), and which of the paper's claims survive (5). Next: `01_select`.
