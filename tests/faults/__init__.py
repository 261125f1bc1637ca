"""A corpus of models that start badly, each with the proof that it does."""

from faults import gradients, roles, scales, signals, values
from faults.cases import FAULTS, Case, Fault

__all__ = ["FAULTS", "Case", "Fault", "gradients", "roles", "scales", "signals", "values"]
