"""Measuring: from a model and a batch to signals."""

from fanin.measuring.measure import measure

__all__ = ["measure"]
