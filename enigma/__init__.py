"""A reproducible companion to the ENIGMA paper (arXiv 2510.11278).

The names below are public and outlive any move of the modules; each is imported when it is first asked for.
"""

import importlib
import os

# Nothing is reported to anyone. The libraries read this when they are imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Threads that wait for work must not burn the cores that others need. OpenMP reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.2.0"
_PUBLIC = {
    "EnigmaConfig": "enigma.llm.config",
    "EnigmaTrainer": "enigma.llm.trainer",
    "graded_format": "enigma.method.rewards",
    "load_profile": "enigma.profile",
    "mutual_information_bounds": "enigma.method.infonce",
    "sami_loss": "enigma.method.infonce",
    "sample_and_score": "enigma.llm.matched",
    "sinkhorn_divergence": "enigma.method.transport",
    "strict_format": "enigma.method.rewards",
    "sufficiency_index": "enigma.method.sufficiency",
}
__all__ = [
    "EnigmaConfig",
    "EnigmaTrainer",
    "graded_format",
    "load_profile",
    "mutual_information_bounds",
    "sami_loss",
    "sample_and_score",
    "sinkhorn_divergence",
    "strict_format",
    "sufficiency_index",
]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'enigma' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
