"""Signals and diagnoses are values: they print, compare, go to JSON and back, and know no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fanin.diagnoses import Diagnosis, Edit, Finding, Severity
from fanin.errors import InputsError, PlanError
from fanin.fans import Axes
from fanin.graph import Graph, ParameterNode, Role
from fanin.plans import Plan
from fanin.schemes import Keep, Normal, Zeros
from fanin.signals import BlockSignal, BufferSignal, Kind, LayerSignal, ParameterSignal, Signals

WEIGHT = ParameterNode("fc.weight", (4, 3), Role.LINEAR, Axes(), aliases=("head.weight",))
GRAPH = Graph((WEIGHT,), "fake", "float32 2×3")
PARAMETER = ParameterSignal(
    "fc.weight", (4, 3), std=0.5, rms=0.5, min=-1.0, max=1.0, blocks=(BlockSignal("q", 0.0, 0.5),), grad_rms=0.1
)
FIRST = LayerSignal(0, "fc", "fc", "linear", Kind.WEIGHT, (2, 4), weights=("fc.weight",), rms=1.0, sample_cosine=0.5)
SUM = LayerSignal(
    1, "add", "", "add", Kind.SUM, (2, 4), rms=5.0, stream=0, stream_depth=1, branch_rms=3.0, stream_rms=4.0,
    stream_start=2.5,
)  # fmt: skip
SIGNALS = Signals(
    (FIRST, SUM), (PARAMETER,), GRAPH, (BufferSignal("mask", (3,), max=1.0),), loss=2.0, loss_from="given", samples=2
)
PLAN = Plan.of(GRAPH, "kept", lambda node: (Keep(), "as found"))
ERROR = Finding("F101", Severity.ERROR, "fc.weight", "std 0.5", "why", "remedy", edits=(Edit("fc.weight", Zeros()),))
WARNING = Finding("F201", Severity.WARNING, "fc", "rms", "why", "wider", edits=(Edit("fc.weight", Normal(std=0.1)),))
NOTE = Finding("F901", Severity.NOTE, "", "news", "why", "nothing")


def test_json_round_trip() -> None:
    assert Signals.from_json(SIGNALS.to_json()) == SIGNALS


def test_json_round_trip_of_a_loss_that_is_not_a_number() -> None:
    signals = Signals((), (), GRAPH, loss=float("inf"))
    assert Signals.from_json(signals.to_json()).loss == float("inf")


def test_other_json_is_refused() -> None:
    with pytest.raises(InputsError, match="no signals"):
        Signals.from_json(GRAPH.to_json())


@pytest.mark.parametrize("kind", [Graph, Signals, Diagnosis])
@pytest.mark.parametrize("change", ["", "[]", "[" * 200_000, "{}", "another", "version", "field", "value"])
def test_a_text_that_is_none_is_refused(kind: type[Graph] | type[Signals] | type[Diagnosis], change: str) -> None:
    whole = {Graph: GRAPH, Signals: SIGNALS, Diagnosis: Diagnosis((ERROR,), SIGNALS, PLAN)}[kind].to_dict()
    last = list(whole)[-1]
    changed = {
        "another": whole | {"fanin": "plan"},
        "version": whole | {"schema": 2},
        "field": {key: value for key, value in whole.items() if key != last},
        "value": whole | {last: [{"shape": "x"}]},
    }
    with pytest.raises(InputsError, match=f"no {kind.__name__.lower()}"):
        kind.from_json(json.dumps(changed[change]) if change in changed else change)


def test_saved_signals_load(tmp_path: Path) -> None:
    assert Signals.load(SIGNALS.save(tmp_path / "signals.json")) == SIGNALS


def test_lookups_know_ties_and_suggest_names() -> None:
    assert SIGNALS.parameter("head.weight") is PARAMETER
    assert SIGNALS.readers("fc.weight") == (FIRST,)
    assert SIGNALS.node("fc.weight") is WEIGHT
    assert SIGNALS.streams == {0: (SUM,)}
    with pytest.raises(InputsError, match=r"did you mean 'fc\.weight'"):
        SIGNALS.parameter("fc.weigt")
    with pytest.raises(InputsError, match="did you mean 'add'"):
        SIGNALS.layer("ad")


def test_derived_numbers() -> None:
    assert SUM.branch_share == pytest.approx(0.6)
    assert SUM.stream_growth == pytest.approx(2.0)
    assert FIRST.branch_share is None
    assert PARAMETER.grad_ratio == pytest.approx(0.2)
    assert not PARAMETER.constant


def test_table_has_a_line_for_every_operation() -> None:
    text = str(SIGNALS)
    assert "linear" in text
    assert "2 operations, 1 parameter; loss 2" in text


def test_findings_stand_worst_first() -> None:
    diagnosis = Diagnosis((NOTE, WARNING, ERROR), SIGNALS)
    assert [finding.code for finding in diagnosis.findings] == ["F101", "F201", "F901"]
    assert not diagnosis.ok
    assert Diagnosis((NOTE,), SIGNALS).ok
    assert str(diagnosis).endswith("1 error, 1 warning, 1 note")


def test_codes_are_selected_and_ignored_by_family() -> None:
    diagnosis = Diagnosis((NOTE, WARNING, ERROR), SIGNALS)
    assert diagnosis.filter(select=["F1"]).codes == ("F101",)
    assert diagnosis.filter(ignore=["F1", "F901"]).codes == ("F201",)


def test_the_worse_finding_edits_last() -> None:
    fixed = Diagnosis((ERROR, WARNING), SIGNALS, PLAN).fix()
    assert fixed["fc.weight"].scheme == Zeros()
    assert fixed["fc.weight"].reason.startswith("F101: remedy")


def test_fix_needs_a_plan() -> None:
    with pytest.raises(PlanError, match="a plan"):
        Diagnosis((ERROR,), SIGNALS).fix()


def test_diagnosis_json_round_trip(tmp_path: Path) -> None:
    diagnosis = Diagnosis((NOTE, WARNING, ERROR), SIGNALS, PLAN)
    assert Diagnosis.from_json(diagnosis.to_json()) == diagnosis
    assert json.loads(diagnosis.save(tmp_path / "d.json").read_text(encoding="utf-8"))["ok"] is False
    with pytest.raises(PlanError, match="suffix"):
        diagnosis.save(tmp_path / "d.docx")


def test_an_edit_is_a_scheme_or_a_factor() -> None:
    with pytest.raises(PlanError, match="either a scheme or a factor"):
        Edit("fc.weight")


def test_records_load_without_torch() -> None:
    code = (
        "import importlib.util, sys, types; sys.modules['torch'] = None; import pathlib;"
        "package = types.ModuleType('fanin'); package.__path__ = [str(pathlib.Path(sys.argv[1]))];"
        "sys.modules['fanin'] = package; import fanin.diagnoses"
    )
    package = Path(__file__).parent.parent / "src" / "fanin"
    subprocess.run([sys.executable, "-c", code, str(package)], check=True)
