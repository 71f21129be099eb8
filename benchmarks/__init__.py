"""Time and memory, measured against named peers. Importing this sets what OpenMP reads when torch is first imported."""

import enigma  # noqa: F401
