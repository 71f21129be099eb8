"""The figures: one file a stage, one function a figure, entered by `figure`. Data frames in, a matplotlib Figure out."""

from enigma.figures import benchmark, claims, geometry, select, train
from enigma.figures.style import FIGURES, make, table

__all__ = ["FIGURES", "benchmark", "claims", "geometry", "make", "select", "table", "train"]
