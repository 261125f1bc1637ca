"""Where on the page a finding belongs: layers, rows of the plan, and what stands there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fanin.diagnoses import RANKS, Diagnosis, Finding, Severity
from fanin.findings import RULES
from fanin.observations import LayerSignal

MOST_LAYERS = 4000
"""A page of more layers shows those with findings, and of the others an even choice."""
MOST_ITEMS = 200
"""A code with more findings shows the first of them; all are in the record."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A place of a finding, and where the page shows it: ``layer`` is the layer's place there, ``anchor`` a link."""

    name: str
    anchor: str = ""
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One finding of a code: where, and what was seen."""

    severity: Severity
    spots: tuple[Spot, ...]
    seen: str
    edits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """All findings of one code."""

    code: str
    title: str
    severity: Severity
    why: str
    remedy: str
    source: str
    items: tuple[Item, ...]
    more: int


@dataclass(frozen=True)
class Places:
    """Where everything of a diagnosis stands on its page.

    Args:
        diagnosis: with its signals.
        rows: parameter → the anchor of its row in the plan.
    """

    diagnosis: Diagnosis
    rows: dict[str, str]

    @cached_property
    def layers(self) -> tuple[LayerSignal, ...]:
        """The layers that the page shows, in execution order."""
        every = self.diagnosis.signals.layers
        if len(every) <= MOST_LAYERS:
            return every
        meant = [self._named(place) for finding in self.diagnosis.findings for place in _all_places(finding)]
        chosen = {layer.name for layer in [layer for layer in meant if layer is not None][: MOST_LAYERS // 2]}
        step = len(every) // (MOST_LAYERS // 2) + 1
        return tuple(layer for place, layer in enumerate(every) if layer.name in chosen or place % step == 0)

    @cached_property
    def cards(self) -> tuple[Card, ...]:
        """The findings by code, worst first."""
        groups: dict[str, list[Finding]] = {}
        for finding in self.diagnosis.findings:
            groups.setdefault(finding.code, []).append(finding)
        return tuple(self._card(findings) for findings in groups.values())

    @cached_property
    def at(self) -> dict[int, dict[str, Severity]]:
        """Layer → the codes of the findings there, each with its worst severity."""
        found: dict[int, dict[str, Severity]] = {}
        for finding in self.diagnosis.findings:
            for place in _all_places(finding):
                layer = self.spot(place).layer
                if layer is not None:
                    found.setdefault(layer, {}).setdefault(finding.code, finding.severity)
        return found

    @cached_property
    def marked(self) -> dict[str, set[int]]:
        """Severity → the layers where it is the worst, the mildest severity first."""
        found: dict[str, set[int]] = {str(severity): set() for severity in reversed(Severity)}
        for layer, codes in self.at.items():
            found[str(min(codes.values(), key=RANKS.__getitem__))].add(layer)
        return found

    def spot(self, place: str) -> Spot:
        """Where a place is shown: a layer, the first layer that reads a parameter, or a row of the plan."""
        named = self._named(place)
        layer = self._order.get(named.name) if named is not None else None
        anchor = f"L{layer}" if layer is not None else self.rows.get(place, "")
        return Spot(place or "the model", anchor, layer)

    def _named(self, place: str) -> LayerSignal | None:
        if place in self._by_name:
            return self._by_name[place]
        graph = self.diagnosis.signals.graph
        readers = self.diagnosis.signals.readers(graph[place].name if place in graph else place)
        return readers[0] if readers else self._by_module.get(place)

    @cached_property
    def _by_name(self) -> dict[str, LayerSignal]:
        return {layer.name: layer for layer in self.diagnosis.signals.layers}

    @cached_property
    def _by_module(self) -> dict[str, LayerSignal]:
        return {layer.module: layer for layer in reversed(self.diagnosis.signals.layers) if layer.module}

    @cached_property
    def _order(self) -> dict[str, int]:
        return {layer.name: place for place, layer in enumerate(self.layers)}

    def _card(self, findings: Sequence[Finding]) -> Card:
        first = findings[0]
        title = RULES[first.code].title if first.code in RULES else first.code
        items = tuple(self._item(finding) for finding in findings[:MOST_ITEMS])
        more = len(findings) - len(items)
        return Card(first.code, title, first.severity, first.why, first.remedy, first.source, items, more)

    def _item(self, finding: Finding) -> Item:
        spots = tuple(self.spot(place) for place in _all_places(finding)[:MOST_ITEMS])
        return Item(finding.severity, spots, finding.seen, tuple(str(edit) for edit in finding.edits))


def _all_places(finding: Finding) -> tuple[str, ...]:
    return (finding.place, *finding.places)
