"""Rules from both sides of their thresholds, on records written by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fanin import meanfield
from fanin.errors import FaninError
from fanin.fans import Axes, Block
from fanin.findings import RULES, Evidence, Hidden, blocked, examine, explain, overview, scales
from fanin.findings.evidence import is_entropy
from fanin.graph import Graph, ParameterNode, Role
from fanin.observations import BlockSignal, BufferSignal, Kind, LayerSignal, ParameterSignal
from fanin.signals import Signals

Shape = tuple[int, ...]
WEIGHT = {"mean": 0.0, "std": 0.088, "rms": 0.088, "min": -0.3, "max": 0.3, "outlier": 4.0}
"""A weight of 256 inputs before a ReLU, drawn by He's rule."""


def node(name: str = "fc.weight", role: Role = Role.LINEAR, shape: Shape = (64, 256), **more: Any) -> ParameterNode:
    axes = more.pop("axes", Axes() if len(shape) > 1 else Axes(in_axis=(), out_axis=(0,)))
    return ParameterNode(name, shape, role, axes, **{"activation": "relu", **more})


def signal(name: str = "fc.weight", shape: Shape = (64, 256), **more: Any) -> ParameterSignal:
    return ParameterSignal(name, shape, **{**WEIGHT, **more})


def layer(index: int, kind: Kind = Kind.WEIGHT, **more: Any) -> LayerSignal:
    settings = {"name": f"l{index}", "module": f"l{index}", "target": "linear", "shape": (32, 64), "rms": 1.0, **more}
    return LayerSignal(index=index, kind=kind, **settings)


def codes(
    nodes: list[ParameterNode], signals: list[ParameterSignal], *layers: LayerSignal, hidden: Any = (), **more: Any
) -> dict[str, str]:
    """The codes that are found, with their severities."""
    graph = Graph(tuple(nodes))
    evidence = Evidence(graph, Signals(tuple(layers), tuple(signals), graph, **more), hidden=hidden)
    return {finding.code: str(finding.severity) for finding in reversed(examine(evidence))}


def of_weight(**more: Any) -> dict[str, str]:
    return codes([node()], [signal(**more)])


def test_a_drawn_weight_is_healthy() -> None:
    assert of_weight() == {}


@pytest.mark.parametrize(
    ("changed", "code", "severity"),
    [
        ({"duplicate_rows": 0.5}, "F101", "error"),
        ({"duplicate_rows": 0.49}, "F101", "warning"),
        ({"duplicate_columns": 1 / 256}, "F101", "warning"),
        ({"repeats": 2, "duplicate_rows": 0.5}, "F103", "error"),
        ({"non_finite": 1e-5}, "F104", "error"),
        ({"max": 2.0**24, "outlier": 9.0}, "F105", "error"),
        ({"subnormal": 0.002}, "F105", "error"),
        ({"outlier": 15.0, "max": 1.15, "tail_power": 0.1}, "F106", "note"),
        ({"outlier": 20.0, "max": 1.4, "tail_power": 0.3}, "F106", "warning"),
        ({"outlier": 100.0, "max": 2.0, "tail_power": 0.6}, "F106", "error"),
        ({"zero": 0.25, "duplicate_rows": 15 / 64}, "F107", "error"),
        ({"rms": 0.088 * 5.1, "std": 0.088 * 5.1}, "F201", "warning"),
        ({"rms": 0.088 * 26, "std": 0.088 * 26}, "F201", "error"),
        ({"rms": 0.088 / 33, "std": 0.088 / 33}, "F201", "warning"),
    ],
)
def test_value_over_the_line(changed: dict[str, Any], code: str, severity: str) -> None:
    assert of_weight(**changed).get(code) == severity


@pytest.mark.parametrize(
    "changed",
    [
        {"max": 2.0**22, "outlier": 9.0},
        {"subnormal": 0.0009},
        {"subnormal": 0.5, "dtype": "float16"},
        {"outlier": 9.9, "max": 0.87},
        {"zero": 1 / 64},
        {"rms": 0.088 * 4.9, "std": 0.088 * 4.9},
        {"rms": 0.088 / 31, "std": 0.088 / 31},
    ],
)
def test_value_under_the_line(changed: dict[str, Any]) -> None:
    assert of_weight(**changed) == {}


def test_a_wrong_scale_before_a_norm_is_a_note() -> None:
    found = codes([node(norm_after=True)], [signal(rms=0.0625 * 6, std=0.0625 * 6)])
    assert found == {"F201": "note"}


def test_a_misread_fan_is_named_by_its_std() -> None:
    depthwise = node(shape=(96, 1, 3, 3), role=Role.CONV, axes=Axes(groups=96))
    wrong, right = math.sqrt(2 / 864), math.sqrt(2 / 9)
    assert codes([depthwise], [signal(shape=(96, 1, 3, 3), std=wrong, rms=wrong)]) == {"F201": "warning"}
    assert codes([depthwise], [signal(shape=(96, 1, 3, 3), std=right, rms=right, max=1.0)]) == {}


def test_twins_are_found_unless_frozen() -> None:
    pair = [signal("a.weight"), signal("b.weight")]
    assert codes([node("a.weight"), node("b.weight")], pair, twins=(("a.weight", "b.weight"),)) == {"F102": "warning"}
    frozen = [node("a.weight"), node("b.weight", frozen=True)]
    assert codes(frozen, pair, twins=(("a.weight", "b.weight"),)) == {}


def test_buffers_may_be_infinite_but_not_nan() -> None:
    assert codes([], [], buffers=(BufferSignal("mask", (4,), non_finite=0.5),)) == {}
    assert codes([], [], buffers=(BufferSignal("freq", (4,), not_a_number=0.5),)) == {"F104": "error"}


@pytest.mark.parametrize(("off", "expected"), [(0.051, {"F202": "error"}), (0.049, {})])
def test_hidden_weight(off: float, expected: dict[str, str]) -> None:
    assert codes([], [], hidden=(Hidden("fc.weight", "fc.weight_g", 0.01, 1.0, off),)) == expected


@pytest.mark.parametrize(("rms", "expected"), [(0.1, {"F203": "warning"}), (0.0, {})])
def test_padding_row(rms: float, expected: dict[str, str]) -> None:
    table = node("e", Role.EMBEDDING, axes=Axes(in_axis=(0,), out_axis=(1,), one_hot=True), padding_row=0)
    other = node("n", Role.NORM_SCALE, (64,))
    ones = signal("n", (64,), mean=1.0, std=0.0, rms=1.0, min=1.0, max=1.0)
    assert codes([table, other], [signal("e", padding_rms=rms), ones]) == expected


@pytest.mark.parametrize(("rms", "severity"), [(3.3, None), (3.4, "warning"), (6.8, "error")])
def test_logits_of_a_tied_matrix(rms: float, severity: str | None) -> None:
    table = node("e", Role.EMBEDDING, (256, 64), axes=Axes(in_axis=(0,), out_axis=(1,), one_hot=True))
    layers = (layer(0, Kind.EMBEDDING, weights=("e",)), layer(1, weights=("e",), rms=rms))
    assert codes([table], [signal("e", (256, 64), std=1.0, rms=1.0, max=4.0)], *layers).get("F204") == severity


@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ({"mean": 1.0, "min": 1.0, "max": 1.0, "std": 0.0, "rms": 1.0}, None),
        ({"mean": 0.51, "min": 0.4, "max": 0.6, "std": 0.05, "rms": 0.51}, None),
        ({"mean": 0.49, "min": 0.4, "max": 0.6, "std": 0.05, "rms": 0.49}, "warning"),
        ({"mean": 2.01, "min": 2.0, "max": 2.1, "std": 0.01, "rms": 2.01}, "warning"),
        ({"mean": 0.0, "min": -0.05, "max": 0.05, "std": 0.02, "rms": 0.02}, "error"),
        ({"mean": 0.009, "min": -0.05, "max": 0.06, "std": 0.02, "rms": 0.022}, "error"),
        ({"mean": 0.011, "min": -0.05, "max": 0.06, "std": 0.02, "rms": 0.023}, "warning"),
        ({"mean": 0.0, "min": 0.0, "max": 0.0, "std": 0.0, "rms": 0.0}, "error"),
    ],
)
def test_norm_scale(values: dict[str, float], severity: str | None) -> None:
    scale = node("n.weight", Role.NORM_SCALE, (64,))
    assert codes([scale], [signal("n.weight", (64,), **values)]).get("F205") == severity


def test_last_scale_of_a_branch_may_be_zero() -> None:
    scale, last = node("n.weight", Role.NORM_SCALE, (64,)), node(tamed_by="n.weight", stream=0)
    zero = signal("n.weight", (64,), mean=0.0, std=0.0, rms=0.0, min=0.0, max=0.0)
    assert codes([last, scale], [signal(), zero]) == {}


@pytest.mark.parametrize(("total", "severity"), [(-0.51, "warning"), (-0.49, "note"), (0.49, "note"), (0.51, None)])
def test_forget_gate(total: float, severity: str | None) -> None:
    rows = [Block(name, (range(i * 16, (i + 1) * 16),)) for i, name in enumerate("ifgo")]
    bias = node("rnn.bias_ih_l0", Role.BIAS, (64,), axes=Axes(in_axis=(), out_axis=(0,), blocks=tuple(rows)))
    means = tuple(BlockSignal(name, total if name == "f" else 0.0, 0.0) for name in "ifgo")
    assert codes([bias], [signal("rnn.bias_ih_l0", (64,), blocks=means)]).get("F206") == severity


@pytest.mark.parametrize(("dead", "severity"), [(0.65, None), (0.7, "warning"), (0.91, "error")])
def test_dead_units(dead: float, severity: str | None) -> None:
    act = layer(0, Kind.ACTIVATION, target="relu", dead=dead, seen=32)
    assert codes([], [], act).get("F303") == severity


@pytest.mark.parametrize(("share", "severity"), [(0.49, None), (0.51, "warning"), (0.91, "error")])
def test_saturated_units(share: float, severity: str | None) -> None:
    assert codes([], [], layer(0, Kind.ACTIVATION, target="tanh", saturated=share)).get("F304") == severity
    assert codes([], [], layer(0, Kind.ACTIVATION, target="relu", saturated=share)) == {}


def chain(*sizes: float, gradients: tuple[float, ...] = (), **more: Any) -> dict[str, str]:
    """Plain layers whose outputs have these sizes, and the gradients of these."""
    names = [f"{index}.weight" for index in range(len(sizes))]
    layers = [
        layer(i, weights=(name,), weight_depth=i + 1, rms=size, grad_rms=gradients[i] if gradients else None)
        for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]
    loss_from = "projection" if gradients else ""
    return codes([node(name) for name in names], [signal(name) for name in names], *layers, loss_from=loss_from, **more)


def test_size_through_depth() -> None:
    first = math.sqrt(2)  # Of an input of RMS 1, by He's gain.
    assert chain(first, 1.0, 0.052) == {}
    assert chain(first, 1.0, 0.048) == {"F301": "note"}  # as three layers of PyTorch's default may
    assert chain(first, 1.0, 0.046) == {"F301": "warning"}
    assert chain(first, 1.0, 1.0, 1.0, 1.0, 0.048) == {"F301": "warning"}
    assert chain(first, 1.0, 0.0024) == {"F301": "error"}
    assert chain(first, 1.0, 19.0) == {}
    assert chain(first, 1.0, 21.0) == {"F302": "warning"}
    assert chain(first, 1.0, 410.0) == {"F302": "error"}


def test_gradient_through_depth() -> None:
    assert chain(1.4, 1.4, 1.4, gradients=(1.0, 20.0, 400.0)) == {}
    assert chain(1.4, 1.4, 1.4, gradients=(1.0, 20.0, 410.0)) == {"F402": "warning"}
    assert chain(1.4, 1.4, 1.4, gradients=(1.0, 20.0, 2e5)) == {"F402": "error"}
    assert chain(1.4, 1.4, 1.4, gradients=(19.0, 4.0, 1.0)) == {}
    assert chain(1.4, 1.4, 1.4, gradients=(21.0, 4.0, 1.0)) == {"F403": "warning"}
    assert chain(1.4, 1.4, 1.4, gradients=(9e3, 4.0, 1.0)) == {"F403": "error"}


@pytest.mark.parametrize(("size", "severity"), [(19.0, None), (21.0, "warning"), (404.0, "error")])
def test_a_state_that_grows(size: float, severity: str | None) -> None:
    weight = node("rnn.weight_hh_l0", Role.RECURRENT, (64, 64), feedback=True)
    state = layer(0, Kind.RECURRENT, target="rnn_relu", weights=(weight.name,), rms=size)
    assert codes([weight], [signal(weight.name, (64, 64))], state).get("F403") == severity


@pytest.mark.parametrize(("last", "severity"), [(1 - 1 / 400, None), (1 - 1 / 410, "warning"), (1 - 1e-6, "error")])
def test_collapse(last: float, severity: str | None) -> None:
    layers = [layer(i, Kind.NORM, sample_cosine=value) for i, value in enumerate((0.0, 0.5, last))]
    assert codes([], [], *layers).get("F305") == severity


@pytest.mark.parametrize(("rms", "severity"), [(5.9, None), (6.1, "warning"), (61.0, "error")])
def test_growing_stream(rms: float, severity: str | None) -> None:
    sizes = (1.0, 1.0, 1.0, rms)
    sums = [layer(i, Kind.SUM, stream=0, rms=x, branch_rms=x, target="add") for i, x in enumerate(sizes)]
    assert codes([], [], *sums).get("F307") == severity


@pytest.mark.parametrize(("entropy", "severity"), [(0.34, None), (0.33, "warning"), (0.19, "error")])
def test_attention(entropy: float, severity: str | None) -> None:
    assert codes([], [], layer(0, Kind.ATTENTION, entropy=entropy, keys=8.0)).get("F308") == severity


@pytest.mark.parametrize(
    ("classes", "loss", "severity"),
    [
        (100, 6.8, None),
        (100, 7.0, "warning"),
        (10, 3.49, None),
        (10, 3.51, "warning"),
        (10, 7.0, "error"),
        (2, 1.88, None),
        (2, 1.92, "warning"),
        (2, 2.1, "error"),
    ],
)
def test_first_loss(classes: int, loss: float, severity: str | None) -> None:
    """A head of He's gain costs a nat, which is more than half of what few classes cost when nothing is known."""
    assert codes([], [], loss=loss, uninformed=math.log(classes)).get("F309") == severity


@pytest.mark.parametrize(("loss", "severity"), [(2.9, None), (3.1, "warning"), (9.1, "error")])
def test_first_squared_error(loss: float, severity: str | None) -> None:
    """Outputs of the power that auto gives them double the squared error of zeros, and are no finding."""
    assert codes([], [], loss=loss, uninformed=1.0).get("F309") == severity


def test_range_of_half_precision() -> None:
    near = {"dtype": "float16", "rms": 100.0}
    assert codes([], [], layer(0, max=8100.0, **near)).get("F310") is None
    assert codes([], [], layer(0, max=8300.0, **near)).get("F310") == "warning"
    assert codes([], [], layer(0, non_finite=1e-4, **near)).get("F310") == "error"
    flushed = {"dtype": "float16", "grad_max": 5e-5, "grad_rms": 1e-6, "reached": True}
    assert codes([node()], [signal(grad_zero=0.11, **flushed)], loss_from="given") == {"F406": "warning"}
    assert codes([node()], [signal(grad_zero=0.09, **flushed)], loss_from="given") == {}


def test_zeros_block_unless_they_move() -> None:
    zero = {"mean": 0.0, "std": 0.0, "rms": 0.0, "min": 0.0, "max": 0.0, "zero": 1.0, "reached": True}
    assert codes([node()], [signal(grad_rms=0.0, **zero)], loss_from="given") == {"F401": "error"}
    assert codes([node()], [signal(grad_rms=1e-9, **zero)], loss_from="given") == {}


def test_parameters_that_are_not_reached() -> None:
    others, reached = (
        [node(), node("on.weight", shape=(64, 128))],
        signal("on.weight", (64, 128), reached=True, grad_rms=1.0),
    )
    assert codes(others, [signal(reached=False), reached], loss_from="given") == {"F405": "warning"}
    others[0] = node(exercised=False)
    assert codes(others, [signal(reached=False), reached], loss_from="given") == {"F405": "note"}
    assert codes([node()], [signal(reached=False)], loss_from="given") == {"F405": "error"}
    assert codes([node(exercised=False)], [signal(reached=False)], loss_from="given") == {"F405": "error"}
    assert codes([node()], [signal()], loss=1.0) == {"F405": "error"}
    assert codes([node(frozen=True)], [signal(reached=False)], loss_from="given") == {}


def test_every_rule_explains_itself() -> None:
    for code, rule in RULES.items():
        assert explain(code.lower()).startswith(f"{code}: {rule.title}")
        assert all((rule.why, rule.threshold, rule.remedy))
        assert code in overview()
    with pytest.raises(FaninError, match="needed: a rule's code"):
        explain("F100")


BRANCH = {"activation": "silu", "stream": 0}
OPENING = {"mean": 0.0, "std": 0.0, "rms": 0.0, "min": 0.0, "max": 0.0, "zero": 1.0, "grad_rms": 1e-3, "reached": True}


@pytest.mark.parametrize(
    ("where", "changed", "found"),
    [
        (BRANCH, {}, None),
        ({"activation": "silu"}, {}, "error"),  # no stream passes it by
        (BRANCH, {"grad_rms": 0.0}, "error"),  # nothing opens it
        ({"activation": "silu", "exercised": False}, {}, None),  # the run did not say whether one is added to it
    ],
)
def test_zero_scale(where: dict[str, Any], changed: dict[str, Any], found: str | None) -> None:
    scale = node("norm.weight", Role.NORM_SCALE, (64,), **where)
    assert codes([scale], [signal("norm.weight", (64,), **OPENING | changed)], layer(0)).get("F205") == found


def test_a_tensor_of_few_values_has_no_outliers() -> None:
    for shape, found in (((8, 8), "error"), ((7, 8), None)):
        assert (
            codes([node(shape=shape)], [signal(shape=shape, outlier=100.0, max=2.0, tail_power=0.6)]).get("F106")
            == found
        )


def test_structure_may_repeat_where_draws_may_not() -> None:
    names = ("a.weight", "b.weight")
    for zero, found in ((0.0, "warning"), (0.95, None)):
        signals = [signal(name, zero=zero) for name in names]
        assert codes([node(name) for name in names], signals, twins=(names,)).get("F102") == found


@pytest.mark.parametrize(("others", "found"), [((), "warning"), ((0.02, 0.02), None), ((0.02, 0.03), "warning")])
def test_a_std_that_others_share_is_chosen(others: tuple[float, ...], found: str | None) -> None:
    """√(2/(200·5·5)), a depthwise kernel's std by the fans of its shape, is also 0.02, which other weights may have."""
    depthwise = node("conv.weight", Role.CONV, (200, 1, 5, 5), axes=Axes(groups=200))
    nodes = [depthwise, *(node(f"{index}.weight", shape=(256, 64 * (index + 1))) for index in range(len(others)))]
    values = (0.02, *others)
    signals = [signal(item.name, item.shape, rms=std, std=std) for item, std in zip(nodes, values, strict=True)]
    first = codes(nodes, signals, layer(0, Kind.NORM, target="layer_norm"))
    assert first.get("F201") == found


def test_a_weight_that_is_standardized_has_no_scale() -> None:
    large = signal(rms=1.0, std=1.0, effective_std=1.0)
    assert codes([node()], [large]).get("F201") == "warning"
    assert codes([node(reparametrized=("mul",))], [large]).get("F201") == "warning"
    assert codes([node(reparametrized=("batch_norm",))], [large]).get("F201") is None


def test_a_norm_of_zeros_is_judged_by_where_they_come_from() -> None:
    norm = layer(1, Kind.NORM, target="layer_norm", rms=0.0)
    zero = signal(mean=0.0, std=0.0, rms=0.0, min=0.0, max=0.0, zero=1.0)
    for fact, found in ((signal(), None), (zero, "error")):
        assert codes([node()], [fact], layer(0, weights=("fc.weight",), rms=0.0), norm).get("F301") == found


def test_units_that_get_zeros_are_not_dead() -> None:
    dead = layer(1, Kind.ACTIVATION, target="relu", rms=0.0, dead=1.0, seen=32)
    for size, found in ((0.0, None), (1.0, "error")):
        assert codes([], [], layer(0, rms=size), dead).get("F303") == found


def test_a_rare_class_is_no_saturation() -> None:
    flat = layer(1, Kind.ACTIVATION, target="sigmoid", saturated=0.8, seen=32)
    bias = node("fc.bias", Role.BIAS, (64,), output=True)
    for value, found in ((-4.6, None), (-1.9, "warning")):
        prior = signal("fc.bias", (64,), mean=value, min=value, max=value, std=0.0, rms=-value)
        assert codes([bias], [prior], layer(0), flat).get("F304") == found
        assert codes([bias], [prior], layer(0), flat, layer(2)).get("F304") == "warning"
        tanh = layer(1, Kind.ACTIVATION, target="tanh", saturated=0.8, seen=32)
        assert codes([bias], [prior], layer(0), tanh).get("F304") == "warning"


def test_a_stream_of_normed_branches_grows_by_their_number() -> None:
    sizes = (0.02, 0.1, 1.0, 2.0)
    sums = [layer(i, Kind.SUM, stream=0, rms=x, branch_rms=x, target="add") for i, x in enumerate(sizes)]
    for tamed, found in (("norm.weight", None), ("", "warning")):
        last = node(stream=0, residual_last=True, tamed_by=tamed)
        norm = node("norm.weight", Role.NORM_SCALE, (64,))
        assert codes([last, norm], [signal(), signal("norm.weight", (64,))], *sums).get("F307") == found


def test_a_recurrence_is_judged_by_a_narrower_line() -> None:
    again = node("rnn.weight_hh_l0", Role.RECURRENT, (64, 64), activation="tanh", feedback=True)
    for gain, found in ((2.9, None), (3.1, "warning")):
        drawn = signal("rnn.weight_hh_l0", (64, 64), std=gain / 8, rms=gain / 8)
        assert codes([again], [drawn]).get("F201") == found


@pytest.mark.parametrize(("other", "found"), [(0.101, None), (0.099, "warning"), (199.0, None), (201.0, "warning")])
def test_positions_and_what_they_are_added_to(other: float, found: str | None) -> None:
    positions = node("pos", Role.POSITION, (16, 64))
    total = layer(0, Kind.SUM, weights=("pos",), rms=math.hypot(1.0, other), target="add")
    assert codes([positions], [signal("pos", (16, 64), rms=1.0, std=1.0, max=4.0)], total).get("F207") == found


@pytest.mark.parametrize(("size", "found"), [(4.9, None), (5.1, "warning")])
def test_a_bias_beside_what_differs_between_inputs(size: float, found: str | None) -> None:
    bias = node("fc.bias", Role.BIAS, (64,))
    drawn = signal("fc.bias", (64,), rms=size, std=size, mean=0.0, min=-size, max=size)
    out = layer(0, weights=("fc.bias",), rms=math.hypot(size, 1.0), offset=size, varying=1.0)
    assert codes([bias], [drawn], out).get("F208") == found


@pytest.mark.parametrize(("off", "found"), [(1.0, "note"), (1.02, "note"), (1.1, None)])
def test_a_packed_matrix_drawn_as_one(off: float, found: str | None) -> None:
    rows = tuple(Block(name, (range(i * 64, (i + 1) * 64),)) for i, name in enumerate("qkv"))
    packed = node("qkv.weight", shape=(192, 64), axes=Axes(blocks=rows))
    std = off * math.sqrt(2 / 256)
    blocks = tuple(BlockSignal(name, 0.0, std) for name in "qkv")
    assert codes([packed], [signal("qkv.weight", (192, 64), std=std, rms=std, blocks=blocks)]).get("F209") == found


@pytest.mark.parametrize(("ratio", "found"), [(0.9e4, None), (1.1e4, "warning"), (1.1e-4, None), (0.9e-4, "warning")])
def test_relative_gradients_of_a_plain_net(ratio: float, found: str | None) -> None:
    names = ("a.weight", "b.weight", "c.weight")
    gradients = (1.0, 1.0, ratio)
    facts = [signal(name, grad_rms=0.088 * size, reached=True) for name, size in zip(names, gradients, strict=True)]
    assert codes([node(name) for name in names], facts, layer(0), loss_from="given").get("F404") == found


@pytest.mark.parametrize(("short", "found"), [(1, None), (0, "warning")])
def test_chaos_by_theory(short: int, found: str | None) -> None:
    """Through as many tanh layers of gain 2 as theory needs to grow the squared gradient by e¹²; and one fewer."""
    fixed = meanfield.fixed_point("tanh", weight_variance=4.0)
    depth = next(depth for depth in range(3, 200) if math.log(fixed.gradient_growth(depth)) > 12) - short
    names = [f"{index}.weight" for index in range(depth)]
    facts = [signal(name, (64, 256), std=2 / 16, rms=2 / 16) for name in names]
    layers = [layer(index, weights=(name,)) for index, name in enumerate(names)]
    assert codes([node(name, activation="tanh") for name in names], facts, *layers).get("F306") == found


def test_what_is_a_note_only_and_what_no_plan_fills_is_said() -> None:
    assert "a note only" in explain("F209").replace("\n", " ")
    buffers = (BufferSignal("rotary.frequencies", (8,), meta=True),)
    weights = (signal(meta=True, rms=0.0),)
    (found,) = examine(Evidence(graph := Graph((node(),)), Signals((), weights, graph, buffers)))
    assert "rotary.frequencies" in found.seen
    assert "deferred" in found.remedy


@pytest.mark.parametrize(
    ("uninformed", "known"), [(math.log(2), True), (math.log(262144), True), (2.0, False), (14.8, False), (99.0, False)]
)
def test_an_entropy_is_known_by_a_whole_number_of_classes(uninformed: float, known: bool) -> None:
    assert is_entropy(uninformed) == known


def test_rules_ask_of_all_parameters_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred layers of scales of their own: neither zeros nor near scales are looked for anew for each of them."""
    names = [f"{i}.weight" for i in range(100)]
    found = [signal(name, std=0.01 * 1.3**i, rms=0.01 * 1.3**i, reached=True) for i, name in enumerate(names)]
    asked = {"stuck": 0, "near": 0}
    stuck, near = blocked._stuck, scales._near
    monkeypatch.setattr(blocked, "_stuck", lambda *one: asked.__setitem__("stuck", asked["stuck"] + 1) or stuck(*one))
    monkeypatch.setattr(scales, "_near", lambda *one: asked.__setitem__("near", asked["near"] + 1) or near(*one))
    codes([node(name) for name in names], found, loss=1.0, loss_from="given")
    assert asked["stuck"] <= 3 * len(names)
    assert asked["near"] <= 30 * len(names)
