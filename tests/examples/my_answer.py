"""Ask a model that a run has trained: python my_answer.py results/mine/pieces/train/mine-s0/*/adapter"""

import sys
from pathlib import Path

import torch

from enigma.llm import prompts
from enigma.llm.loading import load_policy
from enigma.profile import load_profile

profile = load_profile(Path(__file__).with_name("my_profile.yaml"))
model, tokenizer = load_policy(
    profile.model, Path(sys.argv[1])
)  # PEFT's: disable_adapter() is the untrained one
# As in training: where the principle stands, and one worked example of the format.
style = profile.prompts.model_dump()
messages = prompts.messages(
    "How do I boil an egg?", "Begin by thanking the person for the question.", **style
)
asked = torch.tensor([prompts.encode(tokenizer, messages)])
ids = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=64, do_sample=False)
print(tokenizer.decode(ids[0, asked.shape[1] :], skip_special_tokens=True))
