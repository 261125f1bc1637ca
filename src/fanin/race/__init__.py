"""The record of a race between initializations, and the judgement of it. Nothing here knows torch."""

from fanin.race.comparison import Comparison, connect
from fanin.race.runs import Run, Start
from fanin.race.standings import Standing, Verdict

__all__ = ["Comparison", "Run", "Standing", "Start", "Verdict", "connect"]
