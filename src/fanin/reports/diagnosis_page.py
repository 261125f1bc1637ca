"""A diagnosis as one page that needs nothing but itself: its charts, its few lines of script, no address."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fanin import tables
from fanin.diagnoses import Diagnosis, Severity
from fanin.observations import LayerSignal
from fanin.race.wording import enumerate_words
from fanin.reports.columns import Column, columns
from fanin.reports.depth import TALL, Chart, heat_strip, profile_chart, sections
from fanin.reports.html import render
from fanin.reports.places import Places
from fanin.reports.plan_rows import plan_table
from fanin.reports.theory import Prediction, predict
from fanin.signals import Signals

CROWDED = (150, 600)
"""From so many layers on, marks are drawn smaller."""


def write_diagnosis(diagnosis: Diagnosis, path: Path) -> None:
    """Write a diagnosis as a self-contained HTML page.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    path.write_text(page(diagnosis), encoding="utf-8")


def page(diagnosis: Diagnosis) -> str:
    """The page's text."""
    signals = diagnosis.signals
    plan = plan_table(diagnosis)
    places = Places(diagnosis, plan.anchors if plan else {})
    shown = columns(signals, places.layers)
    strips = [(column, heat_strip(column)) for column in shown]
    prediction = predict(signals)
    return render(
        "diagnosis.html",
        verdict=_verdict(places),
        facts=_facts(signals),
        notes=[*signals.notes, *_thinned(places)],
        cards=places.cards,
        count=len(places.layers),
        tall=TALL,
        crowd=sum(len(places.layers) > limit for limit in CROWDED),
        charts=_charts(places, prediction),
        theory=_theory(prediction),
        sections=sections(places.layers),
        strips=strips,
        zeros=any(stroke.name == "zero" for _, drawing in strips for stroke in drawing),
        marked={severity: sorted(found) for severity, found in places.marked.items() if found},
        columns=shown,
        rows=[_cells(layer, place, shown, places) for place, layer in enumerate(places.layers)],
        plan=plan,
        legend=[*_LEGEND, *((column.statistic.name, column.statistic.words) for column in shown)],
    )


_LEGEND = (
    ("layer", "an operation of the model, in the order in which they ran; a line joins what weights put out"),
    ("finding", "a click on one, or on a place in the charts, marks its layer everywhere; arrow keys step on"),
)


def _verdict(places: Places) -> list[str]:
    """What was found, in a sentence or two."""
    findings = places.diagnosis.findings
    if not findings:
        return ["Healthy: nothing found."]
    counts = [(severity, sum(item.severity is severity for item in findings)) for severity in Severity]
    words = enumerate_words([tables.counted(count, severity) for severity, count in counts if count])
    worst = [card for card in places.cards if card.severity is findings[0].severity]
    titles = enumerate_words([card.title for card in worst])
    return [f"{'Healthy, with ' if places.diagnosis.ok else ''}{words}.", f"{titles[:1].upper()}{titles[1:]}."]


def _facts(signals: Signals) -> list[str]:
    """What was measured, in short."""
    values = sum(math.prod(parameter.shape) for parameter in signals.parameters)
    facts = [tables.counted(len(signals.layers), "layer"), tables.counted(len(signals.parameters), "parameter")]
    facts[-1] += f", {tables.counted(values, 'value')}"
    if signals.inputs:
        facts.append(f"run on {signals.inputs}")
    if signals.precision:
        facts.append(f"autocast to {signals.precision}")
    if signals.loss is not None:
        known = signals.uninformed
        facts.append(f"loss {tables.number(signals.loss)}" + (f"; uninformed {known:.4g}" if known is not None else ""))
    elif signals.loss_from == "projection":
        facts.append("gradients of a fixed random projection of the outputs, for no loss was given")
    return facts


def _thinned(places: Places) -> list[str]:
    every, shown = len(places.diagnosis.signals.layers), len(places.layers)
    if every == shown:
        return []
    return [f"{shown:,} of {every:,} layers are shown: those with findings, and an even choice of the others"]


def _charts(places: Places, prediction: Prediction | None) -> list[Chart]:
    """The profiles of what was measured, forward and backward."""
    order = {layer.index: place for place, layer in enumerate(places.layers)}

    def placed(values: dict[int, float]) -> dict[int, float]:
        return {order[index]: value for index, value in values.items() if index in order}

    forward = placed(prediction.rms) if prediction else {}
    backward = placed(prediction.gradients) if prediction else {}
    layers, marked = places.layers, places.marked
    sizes, gradients = [layer.rms for layer in layers], [layer.grad_rms for layer in layers]
    varying = [layer.varying for layer in layers]
    drawn = [
        profile_chart("forward", "Activations: RMS of each output", layers, sizes, forward, marked, varying),
        profile_chart("backward", "Gradients: RMS at each output", layers, gradients, backward, marked),
    ]
    return [chart for chart in drawn if chart is not None]


def _theory(prediction: Prediction | None) -> str:
    """What the dashed line is; empty without one."""
    if prediction is None:
        return ""
    between = f"{prediction.activation} between layers" if prediction.activation else "linear layers"
    text = (
        f"Predicted by mean-field theory for wide layers, {between}, each with its measured weight and bias variance; "
        "forward from the first layer's RMS"
    )
    text += ", backward from the last layer's gradient." if prediction.gradients else "."
    text += " A net of finite width wanders from it, the more the deeper it is."
    return text + (" The zeros around images are left out of it." if prediction.borders else "")


def _cells(layer: LayerSignal, place: int, shown: Sequence[Column], places: Places) -> dict[str, Any]:
    return {
        "name": layer.name,
        "target": layer.target,
        "shape": tables.shape_text(layer.shape),
        "codes": [(code, str(severity)) for code, severity in places.at.get(place, {}).items()],
        "values": [_short(column.values[place]) for column in shown],
    }


def _short(value: float | None) -> str:
    """A number of few signs: a thousand layers have many."""
    return "" if value is None else tables.number(value, 3).replace("e-0", "e-").replace("e+0", "e")
