"""What of a diagnosis's remedies the parametrizations of a model can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from fanin.diagnoses import Edit, Finding
from fanin.errors import FaninError
from fanin.graph import ParameterNode
from fanin.parametrized import require_holdable
from fanin.schemes import Orthogonal, Scheme
from fanin.signals import Signals
from fanin.sites import Site
from fanin.tracing.names import NamedParameter, named_parameters


def holdable(findings: Sequence[Finding], signals: Signals, model: nn.Module) -> tuple[Finding, ...]:
    """The findings with edits that can be written: where a parametrization cannot hold a weight, the nearest it can.

    Spectral normalization holds no weight whose largest singular value is not 1, so that a gain has to follow from
    what is behind it; where no weight is nearer than the one that is there, the edit is left out and the remedy says
    so.
    """
    held = _Held(signals, model)
    return tuple(held.finding(found) for found in findings) if held.entries else tuple(findings)


class _Held:
    """The weights that parametrizations compute, and what has been asked of them."""

    def __init__(self, signals: Signals, model: nn.Module) -> None:
        self.signals = signals
        self.entries = {entry.name: entry for entry in named_parameters(model) if _is_held(entry)}
        self._asked: dict[tuple[str, Scheme], Scheme | None] = {}

    def finding(self, found: Finding) -> Finding:
        edits: list[Edit] = []
        refused: dict[str, None] = {}
        for edit in found.edits:
            entry = self.entries.get(edit.pattern)
            if entry is None or edit.scheme is None:
                edits.append(edit)
                continue
            scheme = self._nearest(edit.scheme, entry)
            if scheme is not None:
                edits.append(Edit(edit.pattern, scheme))
            if scheme != edit.scheme:
                assert entry.weight is not None
                refused[", ".join(entry.weight.kinds)] = None
        if not refused:
            return found
        remedy = f"{found.remedy}; {' and '.join(refused)} cannot hold that gain: put it behind, or take it off"
        return replace(found, edits=tuple(edits), remedy=remedy)

    def _nearest(self, scheme: Scheme, entry: NamedParameter) -> Scheme | None:
        key = (entry.name, scheme)
        if key not in self._asked:
            node = self.signals.graph[entry.name]
            near = Orthogonal() if self._is_nearer(Orthogonal(), scheme, node) else None
            options = (option for option in (scheme, near) if option is not None)
            self._asked[key] = next((option for option in options if _holds(entry, node, option)), None)
        return self._asked[key]

    def _is_nearer(self, other: Scheme, wanted: Scheme, node: ParameterNode) -> bool:
        """Whether another scheme's weight is nearer in size to the wanted one than what the layer uses now."""
        fact = self.signals.parameter(node.name)
        used = fact.rms if fact.effective_std is None else fact.effective_std
        site = (node.fans, node.shape, node.axes)
        goal = wanted.expected(*site).std
        if not (goal and used) or fact.non_finite or not math.isfinite(used):  # 0/0, of a weight of zeros
            return True
        return abs(math.log(other.expected(*site).std / goal)) < abs(math.log(used / goal))


def _is_held(entry: NamedParameter) -> bool:
    """Whether a weight is computed from a parameter in a way that may refuse one."""
    weight = entry.weight
    return weight is not None and weight.part == "main" and not weight.is_weight_norm and not entry.parameter.is_meta


def _holds(entry: NamedParameter, node: ParameterNode, scheme: Scheme) -> bool:
    site = Site(node.shape, node.axes, entry.weight_name, node.padding_row)
    try:
        require_holdable(scheme, site, entry, ())
    except FaninError:
        return False
    return True
