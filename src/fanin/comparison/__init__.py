"""The race: train the same model from different starts, on the same batches, and judge each fairly."""

from fanin.comparison.racing import compare

__all__ = ["compare"]
