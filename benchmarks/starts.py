"""The zoo's first step: models of the three libraries as constructed, and as the auto recipe fills them.

    python benchmarks/starts.py [--only timm] [--limit 100] [--again missed] [--stored] [--write]

Each model runs forward and backward once on made-up inputs (noise, random tokens). Counted is

- finite: every output and every gradient;
- forward: the output of each linear layer and convolution that no norm follows has an RMS within a factor of ten of
  ``std·√fan_in`` of what auto gives it, the RMS for inputs of unit size, times the std of a table whose rows it takes
  in; behind an attention over n keys or a mean over n positions, which leave 1/√n of independent values, it may be
  smaller by as much until a norm comes; weights that the model itself standardizes have no target;
- backward: the gradient that reaches the output of the first weight is within 10³ of that at the end of the trunk,
  both as norms. The trunk ends at what the head takes in, before each of several; without a head at the last sum or
  norm of its stream, or at the deepest weights, wherever they are used.

A model counts as started when all three hold. What ran is in `docs/benchmarks/starts.json`, model by model; ``--write``
puts the table into `docs/starts.md`; ``--again`` runs again what had missed a criterion, or models whose names begin
with a word.
"""

from __future__ import annotations

import gc
import json
import math
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import fanin
from audit import LARGEST, LIBRARIES, OutOfTime, built, fewer, parser_of, prepare, time_limit
from fanin.errors import FaninError
from fanin.examples import made_up_inputs
from fanin.measuring import measure
from fanin.observations import Kind, LayerSignal
from fanin.plans import Plan
from fanin.progress import track
from fanin.signals import Signals
from pages import put

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "docs" / "benchmarks" / "starts.json"
PAGE = ROOT / "docs" / "starts.md"
NEAR, FAR = 10.0, 1e3
PRODUCTS = ("linear", "conv", "mm", "einsum")
CRITERIA = ("finite", "forward", "backward")

Row = dict[str, Any]


def started(signals: Signals, plan: Plan) -> Row:
    """Which criteria hold, and where the worst of each is."""
    far, place = _farthest(signals, plan)
    ratio = _backward(signals)
    return {
        "finite": _finite(signals),
        "forward": 1 / NEAR <= far <= NEAR,
        "backward": 1 / FAR <= ratio <= FAR,
        "worst": round(far, 4),
        "place": place,
        "ratio": float(f"{ratio:.3g}"),
    }


def _finite(signals: Signals) -> bool:
    trunk = signals.of_kind(Kind.WEIGHT, Kind.NORM, Kind.EMBEDDING, Kind.RECURRENT)
    return not any(layer.non_finite for layer in trunk) and not any(
        parameter.grad_non_finite for parameter in signals.parameters
    )


def _farthest(signals: Signals, plan: Plan) -> tuple[float, str]:
    """The output farthest from its target, as a ratio, and where it is."""
    found = [(1.0, "")]
    for layer in signals.of_kind(Kind.WEIGHT):
        for name in layer.weights if any(product in layer.target for product in PRODUCTS) else ():
            node = plan[name].node
            silent = not layer.rms and signals.parameter(name).rms  # it takes in zeros, which no start can change
            if node.is_weight and not (node.norm_after or node.standardized or node.feedback or silent):
                ratio = layer.rms / _target(plan, name)
                averaged = min(ratio * math.sqrt(_averaged(signals, layer)), 1.0)
                found.append((max(ratio, averaged), layer.name))
    return max(found, key=lambda item: abs(math.log(max(item[0], 1e-30))))


def _target(plan: Plan, name: str) -> float:
    row = plan[name]
    stds = [row.block_std[block] for block in row.block_std] or [row.expected.std]
    size = plan[row.node.table_before].expected.std if row.node.table_before else 1.0
    return max(stds) * math.sqrt(max(row.node.fans.fan_in, 1.0)) * (size or 1.0) * row.node.input_rms


def _averaged(signals: Signals, layer: LayerSignal) -> float:
    """Over how many keys or positions the mean goes that an operation lies behind, with no norm since; else 1.

    Probabilities over n keys are 1/n themselves, so that the allowance for them is n, of which a root is taken.
    """
    steps = (Kind.WEIGHT, Kind.ATTENTION, Kind.NORM, Kind.ACTIVATION)
    for before in (earlier for earlier in reversed(signals.layers[: layer.index]) if earlier.kind in steps):
        if before.kind is Kind.ATTENTION:
            keys = before.keys or 1.0
            return keys**2 if _mixes_heads(layer, before) else keys
        if before.kind is Kind.WEIGHT and _beside_scores(signals, before):
            continue
        if _positions(layer) > 1:
            return 1.0
        if _positions(before) > 1:
            return _positions(before)
        if before.kind is Kind.NORM:
            return 1.0
    return 1.0


def _beside_scores(signals: Signals, layer: LayerSignal) -> bool:
    """Whether a weight makes the values, after the scores were made, or mixes the scores' probabilities."""
    scores = [item for item in signals.layers[: layer.index] if item.kind is Kind.ATTENTION]
    beside = any(item.weight_depth == layer.weight_depth for item in scores)
    return beside or (bool(scores) and _mixes_heads(layer, scores[-1]))


def _mixes_heads(layer: LayerSignal, before: LayerSignal) -> bool:
    """Whether a weight takes in the probabilities of an attention: one for each head, query and key."""
    return before.target == "softmax" and len(layer.shape) == 4 and sorted(layer.shape) == sorted(before.shape)


def _positions(layer: LayerSignal) -> float:
    """Pixels of an image, or tokens of a sequence."""
    shape = layer.shape
    return math.prod(shape[2:]) if len(shape) > 3 else math.prod(shape[1:-1])


def _backward(signals: Signals) -> float:
    """The gradient's norm at the first weight's output over that at the trunk's end."""

    def norm(layer: LayerSignal) -> float:
        return (layer.grad_rms or 0.0) * math.sqrt(math.prod(layer.shape))

    ends = {layer.index: layer for layer in _ends(signals)}
    heads = {name for layer in signals.of_kind(Kind.WEIGHT) for name in layer.weights if signals.graph[name].output}
    weights = [layer for layer in signals.of_kind(Kind.WEIGHT, Kind.SUM) if layer.grad_rms]
    first = next((layer for layer in weights if heads.isdisjoint(layer.weights)), None)
    return norm(first) / math.hypot(*map(norm, ends.values())) if first is not None and ends else 1.0


def _ends(signals: Signals) -> list[LayerSignal]:
    """What each head takes in; without one the last sum of a stream or norm, or else each use of the deepest weights.

    Other sums behind the last weight belong to a loss.
    """
    ends: list[LayerSignal] = []
    before: list[LayerSignal] = []
    for layer in signals.of_kind(Kind.WEIGHT, Kind.SUM, Kind.NORM, Kind.ACTIVATION):
        if any(signals.graph[name].output for name in layer.weights):
            ends += before[-1:]
        elif layer.grad_rms:
            before.append(layer)
    if ends:
        return ends
    depth = max((layer.weight_depth for layer in before if layer.kind is Kind.WEIGHT), default=0)
    deepest = [layer for layer in before if layer.weight_depth == depth]
    closing = [layer for layer in deepest if layer.kind is Kind.NORM or layer.stream_depth > 1]
    last = {name for layer in deepest if layer.kind is Kind.WEIGHT for name in layer.weights}
    return closing[-1:] or [layer for layer in before if not last.isdisjoint(layer.weights)]


def compared(library: str, name: str) -> Row:
    """One model's row: as constructed, and by auto."""
    model = built(library, name)
    if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
        return {"skipped": "too large"}
    for _, inputs in made_up_inputs(model):
        call = fewer(inputs)
        try:
            before = measure(model, call)
        except FaninError:
            continue
        plan = fanin.plan(model, call)
        fanin.apply(plan, model, seed=0)
        return {"constructed": started(before, plan), "auto": started(measure(model, call), plan)}
    return {"skipped": "no made-up inputs fit"}


def sweep(library: str, store: dict[str, Any], limit: int | None, again: str) -> None:
    """Run what is not in the store yet, or again what is chosen there, and save after every model."""
    rows = store.setdefault(library, {})
    if again:
        names = [name for name, row in rows.items() if (_missed(row) if again == "missed" else name.startswith(again))]
    else:
        names = [name for name in LIBRARIES[library][0](store) if name not in rows]
    if library != "timm":  # whose smallest of each family come first; so that a part is a sample
        random.Random(0).shuffle(names)
    for name in track(names[:limit], library):
        try:
            with time_limit():
                rows[name] = compared(library, name)
        except (Exception, OutOfTime) as error:  # the sweep counts what breaks, and goes on
            rows[name] = {"failed": f"{type(error).__name__}: {str(error)[:120]}"}
        gc.collect()  # models hold cycles
        store["date"], store["torch"] = time.strftime("%Y-%m-%d"), torch.__version__
        kept = {key: value for key, value in store.items() if key != "sizes"}
        STORE.write_text(json.dumps(kept, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


def table(store: Mapping[str, Any]) -> str:
    """The shares of models for which each criterion holds, as Markdown."""
    lines = [f"| library | start | models | {' | '.join(CRITERIA)} | all three |", "|---|---|---|---|---|---|---|"]
    for library in LIBRARIES:
        rows = [row for row in store.get(library, {}).values() if "auto" in row]
        for start in ("constructed", "auto") if rows else ():
            held = [sum(row[start][criterion] for row in rows) for criterion in CRITERIA]
            held.append(sum(all(row[start][criterion] for criterion in CRITERIA) for row in rows))
            cells = " | ".join(f"{count / len(rows):.1%}" for count in held)
            lines.append(f"| {library} | {start} | {len(rows)} | {cells} |")
    missed = [
        f"- {library}/{name}: " + "; ".join(_why(row["auto"]))
        for library in LIBRARIES
        for name, row in store.get(library, {}).items()
        if _missed(row)
    ]
    broken = [
        f"- {library}/{name}: {row['failed']}"
        for library in LIBRARIES
        for name, row in store.get(library, {}).items()
        if "failed" in row
    ]
    words = [f"Measured {store['date']}, torch {store['torch']}.", "", "Where auto misses:", "", *missed]
    return "\n".join([*lines, "", *words, *(["", "What did not run:", "", *broken] if broken else [])])


def _missed(row: Row) -> bool:
    return "auto" in row and not all(row["auto"][criterion] for criterion in CRITERIA)


def _why(row: Row) -> list[str]:
    words = [] if row["finite"] else ["not finite"]
    words += [] if row["forward"] else [f"RMS {row['worst']:.3g} times the target at `{row['place']}`"]
    return words + ([] if row["backward"] else [f"gradient at the first weight {row['ratio']:.3g} times the last's"])


def main() -> None:
    """Run the comparison."""
    parser = parser_of(__doc__, PAGE)
    parser.add_argument("--again", default="", help="run again what had missed, or models whose names begin so")
    options = parser.parse_args()
    prepare()
    store = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}
    for library in () if options.stored else options.only or LIBRARIES:
        sweep(library, store, options.limit, options.again)
    text = table(store)
    print(text)
    if options.write:
        put(PAGE, "starts", text)


if __name__ == "__main__":
    main()
