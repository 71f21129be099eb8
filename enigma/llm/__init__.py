"""Models: loading, prompts, sampling, scoring, training."""

import warnings

# Peers still use names that transformers will rename; nobody who runs a notebook can do anything about it.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
