"""A reproducible companion to the ENIGMA paper (arXiv 2510.11278)."""

import os

# Nothing is reported to anyone. The libraries read this when they are imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
