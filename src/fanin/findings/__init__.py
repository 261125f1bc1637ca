"""Findings: one rule or family a file; each judges the graph and the signals, and needs no model."""

from fanin.findings import (
    attention,
    backward,
    blocked,
    collapse,
    depth,
    equality,
    garbage,
    gates,
    losses,
    precision,
    roles,
    scales,
    units,
)
from fanin.findings.evidence import Evidence, Hidden
from fanin.findings.registry import RULES, Codes, Rule, examine, explain, known_codes, overview, register

__all__ = [
    "RULES",
    "Codes",
    "Evidence",
    "Hidden",
    "Rule",
    "attention",
    "backward",
    "blocked",
    "collapse",
    "depth",
    "equality",
    "examine",
    "explain",
    "garbage",
    "gates",
    "known_codes",
    "losses",
    "overview",
    "precision",
    "register",
    "roles",
    "scales",
    "units",
]
