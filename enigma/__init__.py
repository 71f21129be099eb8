"""A reproducible companion to the ENIGMA paper (arXiv 2510.11278).

The names below are public and outlive any move of the modules; each is imported when it is first asked for.
"""

import importlib
import os

# Nothing is reported to anyone. The libraries read this when they are imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Threads that wait for work must not burn the cores that others need. OpenMP reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch then takes large tensors from huge pages, and a freed one fits the next of its size: without it a training step leaves
# holes of a gigabyte in the heap. Read when torch first allocates.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.2.0"
_MODULES = {
    "enigma.llm.config": ("EnigmaConfig",),
    "enigma.llm.matched": ("sample_and_score",),
    "enigma.llm.trainer": ("EnigmaTrainer",),
    "enigma.method.infonce": ("mutual_information_bounds", "sami_loss"),
    "enigma.method.rewards": ("graded_format", "strict_format"),
    "enigma.method.sufficiency": ("set_sufficiency_index", "sufficiency_index"),
    "enigma.method.transport": ("sinkhorn_divergence",),
    "enigma.profile": ("load_profile",),
}
_PUBLIC = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'enigma' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
