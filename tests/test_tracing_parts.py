"""The parts of the tracer, each on the smallest model that shows what it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fanin.errors import TraceError
from fanin.fans import Axes
from fanin.graph import Graph, ParameterNode, Role
from fanin.tracing import compatibility, register_op, trace
from fanin.tracing.packing import as_ranges
from fanin.tracing.vocabulary import RULES
from fanin.tracing.walks import Walker


class Weight(nn.Module):
    """One weight in a function of the test's own."""

    def __init__(self, shape: tuple[int, ...], function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(shape))
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.w)


def only(
    shape: tuple[int, ...], function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *size: int
) -> ParameterNode:
    return trace(Weight(shape, function), torch.zeros(size))["w"]


@pytest.mark.parametrize(
    ("shape", "function", "size", "axes"),
    [
        ((3, 5), lambda x, w: F.linear(x, w), (2, 5), Axes()),
        ((5, 3), lambda x, w: x @ w, (2, 5), Axes((0,), (1,))),
        ((5, 3), lambda x, w: F.linear(x, w.t()), (2, 5), Axes((0,), (1,))),
        ((3, 5), lambda x, w: w @ x.t(), (2, 5), Axes()),
        ((4, 5, 3), lambda x, w: torch.bmm(x, w), (4, 2, 5), Axes((1,), (2,), (0,))),
        ((4, 3, 5), lambda x, w: x @ w.transpose(1, 2), (4, 2, 5), Axes((2,), (1,), (0,))),
        ((4, 5, 3), lambda x, w: x @ w[1], (2, 5), Axes((1,), (2,), (0,))),
        ((5, 2, 3), lambda x, w: torch.einsum("bd,dhk->bhk", x, w), (2, 5), Axes((0,), (1, 2))),
        ((2, 3, 5), lambda x, w: torch.einsum("bhk,hkd->bd", x, w), (4, 2, 3), Axes((0, 1), (2,))),
        ((5, 2, 3), lambda x, w: x @ w.reshape(5, 6), (2, 5), Axes((0,), (1, 2))),
        ((6, 5), lambda x, w: x @ w.view(2, 3, 5).permute(2, 0, 1).reshape(5, 6), (2, 5), Axes()),
        ((8, 1, 3, 3), lambda x, w: F.conv2d(x, w, groups=8), (2, 8, 9, 9), Axes(groups=8)),
        (
            (8, 4, 4),
            lambda x, w: F.conv_transpose1d(x, w, stride=2),
            (2, 8, 9),
            Axes((0,), (1,), stride=2, transposed=True),
        ),
        ((3, 4, 5), lambda x, w: F.bilinear(x[:, :4], x[:, 4:], w), (2, 9), Axes((1, 2), (0,), factors=True)),
        ((3, 2, 5), lambda x, w: torch.tensordot(x, w, dims=([1], [2])), (4, 5), Axes((2,), (0, 1))),
    ],
)
def test_axes_come_from_the_operation_that_consumes_the_weight(
    shape: tuple[int, ...],
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    size: tuple[int, ...],
    axes: Axes,
) -> None:
    assert only(shape, function, *size).axes == axes


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x * torch.sigmoid(1.702 * x), "gelu"),
        (lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), "gelu"),
        (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), "gelu"),
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: x * torch.tanh(F.softplus(x)), "mish"),
        (lambda x: x * F.relu6(x + 3) / 6, "hardswish"),
        (lambda x: F.relu6(x + 3) / 6, "hardsigmoid"),
        (lambda x: torch.clamp(x, min=0), "relu"),
        (lambda x: torch.clamp(x, 0, 6), "relu6"),
        (lambda x: torch.where(x > 0, x, 0.2 * x), "leaky_relu"),
        (lambda x: F.relu(x) ** 2, "relu_squared"),
        (lambda x: torch.sin(30 * x), "sin"),
        (lambda x: F.relu(x, inplace=True), "relu"),
        (lambda x: torch.log1p(torch.exp(x)), "softplus"),
        (lambda x: x / (1 + x.abs()), "softsign"),
        (lambda x: F.relu6(x), "relu6"),
        (lambda x: F.hardtanh(x, -2, 2), "hardtanh"),
        (lambda x: x.clamp(-7, 7), "none"),
        (lambda x: F.avg_pool1d(F.dropout(3 * x + 1, 0.5), 2), "none"),
    ],
)
def test_non_linearities_are_named_by_what_they_compute(
    function: Callable[[torch.Tensor], torch.Tensor], name: str
) -> None:
    assert only((4, 4), lambda x, w: function(F.linear(x, w)), 2, 4).activation == name


def test_an_unknown_non_linearity_has_its_moments() -> None:
    found = only((4, 4), lambda x, w: torch.tanh(F.linear(x, w)) * torch.cos(F.linear(x, w)), 2, 4).captured
    assert found is None, "two products of one weight are no function of one variable"
    node = only((4, 4), lambda x, w: (y := F.linear(x, w)) + torch.sin(2 * y), 2, 4)
    assert node.captured is not None
    # E (z + sin 2z)² = 1 + 2·2·e⁻² + (1 − e⁻⁸)/2, and its derivative 1 + 2 cos 2z likewise.
    assert node.captured.second_moment == pytest.approx(1 + 4 * math.exp(-2) + (1 - math.exp(-8)) / 2, rel=1e-6)
    derivative = 1 + 4 * math.exp(-2) + 4 * (1 + math.exp(-8)) / 2
    assert node.captured.derivative_second_moment == pytest.approx(derivative, rel=1e-6)


def test_a_slope_that_no_table_has_is_captured() -> None:
    node = only((4, 4), lambda x, w: F.leaky_relu(F.linear(x, w), 0.2), 2, 4)
    assert node.activation == "leaky_relu"
    assert node.captured is not None
    assert node.captured.second_moment == pytest.approx(0.52)
    plain = only((4, 4), lambda x, w: F.leaky_relu(F.linear(x, w)), 2, 4)
    assert plain.captured is None


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda y: y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6), True),
        (lambda y: (y - y.mean(-1, keepdim=True)) / torch.sqrt(y.var(-1, keepdim=True) + 1e-6), True),
        (lambda y: F.normalize(y, dim=-1), True),
        (lambda y: F.layer_norm(y, (4,)), True),
        (lambda y: F.layer_norm(y + 1, (4,)), True),
        (lambda y: F.layer_norm(torch.relu(y), (4,)), False),
        (lambda y: F.layer_norm(y + y.flip(0), (4,)), False),
        (lambda y: y / y.sum(-1, keepdim=True), False),
    ],
)
def test_norms_written_out_are_norms(function: Callable[[torch.Tensor], torch.Tensor], expected: bool) -> None:
    assert only((4, 4), lambda x, w: function(F.linear(x, w)), 2, 4).norm_after is expected


def test_rows_as_ranges() -> None:
    assert as_ranges([0, 1, 2, 6, 7, 8]) == (range(3), range(6, 9))
    assert as_ranges([1, 3, 5]) == (range(1, 7, 2),)
    assert as_ranges([4]) == (range(4, 5),)


def test_operations_that_arrive_decomposed_are_understood() -> None:
    def attention(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        q, k, v = torch.ops.aten.addmm(torch.zeros(12), x, w.t()).split(4, -1)
        weights = torch.ops.aten._softmax(torch.ops.aten.mm(q, k.t()), -1, False)
        y = torch.ops.aten.native_layer_norm(torch.ops.aten.mm(weights, v), [4], None, None, 1e-5)[0]
        return torch.ops.aten._unsafe_view(y, [y.numel()])

    node = only((12, 4), attention, 3, 4)
    assert node.blocks == {"q": (range(4),), "k": (range(4, 8),), "v": (range(8, 12),)}


def test_the_self_test_of_this_torch_passes() -> None:
    assert compatibility.check()


def test_a_registered_operation_is_followed_and_an_unknown_one_is_not() -> None:
    library = torch.library.Library("fanin_test", "FRAGMENT")
    library.define("bend(Tensor x) -> Tensor")
    library.impl("bend", lambda x: x.clone(), "CompositeExplicitAutograd")
    library.impl("bend", lambda x: torch.empty_like(x), "Meta")
    try:

        def bend(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return torch.ops.fanin_test.bend(F.linear(x, w))  # type: ignore[no-any-return]

        unknown = only((4, 4), bend, 2, 4)
        assert unknown.activation is None
        assert unknown.confidence < 1
        register_op("fanin_test::bend", "activation", "tanh")
        assert only((4, 4), bend, 2, 4).activation == "tanh"
        register_op("fanin_test::bend", "elementwise")
        assert only((4, 4), bend, 2, 4).activation == "none"
    finally:
        RULES.pop("fanin_test::bend", None)
        library._destroy()
    with pytest.raises(TraceError, match="an activation without a name"):
        register_op("a::b", "activation")


def test_inputs_are_a_tensor_a_tuple_or_a_mapping() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, *, y: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(y)

    graph = trace(Two(), {"x": torch.zeros(1, 2), "y": torch.zeros(1, 3)})
    assert graph.inputs == "x=float32 1×2, y=float32 1×3"
    assert graph["b.weight"].output
    assert trace(nn.Bilinear(2, 3, 4), (torch.zeros(1, 2), torch.zeros(1, 3))).source == "fake"


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10)),
        nn.Sequential(nn.Linear(7, 7)),
        nn.GRU(3, 4),
        nn.Embedding(5, 3),
        nn.MultiheadAttention(8, 2),
        nn.Sequential(nn.Conv1d(2, 4, 3), nn.ELU()),
    ],
    ids=lambda model: type(model).__name__,
)
def test_inputs_are_found_and_said(model: nn.Module) -> None:
    graph = trace(model)
    assert graph.source == "fake"
    assert graph.inputs
    assert "guess" in graph.notes[0]
    assert max(node.confidence for node in graph) <= 0.9


def test_where_no_inputs_fit_the_graph_says_why_and_is_from_module_types() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, a: object, b: object, c: object) -> None:
            raise ValueError("never")

    graph = trace(Odd())
    assert graph.source == "modules"
    assert graph["layer.weight"].role == Role.LINEAR
    assert "never" in " ".join(graph.notes) or "missing" in " ".join(graph.notes)


def test_a_graph_survives_json_with_what_was_traced() -> None:
    graph = trace(nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.3), nn.Linear(8, 2)), torch.zeros(2, 4))
    assert Graph.from_json(graph.to_json()) == graph
    assert "leaky_relu" in graph.explain("0.weight")


def test_a_layer_on_a_transposed_signal_gives_a_contiguous_one() -> None:
    def transposed(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(F.linear(x.transpose(0, 1), w).view(-1))

    node = only((4, 4), transposed, 2, 3, 4)
    assert trace(Weight((4, 4), transposed), torch.zeros(2, 3, 4)).source == "fake"
    assert node.activation == "relu"


@pytest.mark.parametrize(
    ("layer", "signal"),
    [
        (nn.Linear(4, 3), torch.zeros(2, 5, 4)),
        (nn.Linear(4, 4), torch.zeros(5, 2, 4).transpose(0, 1)),
        (nn.LayerNorm(4), torch.zeros(2, 5, 4)),
        (nn.LayerNorm(4), torch.zeros(2, 4, 5).transpose(1, 2)),
        (nn.BatchNorm2d(3), torch.zeros(2, 3, 5, 5)),
        (nn.BatchNorm2d(3), torch.zeros(2, 3, 5, 5).to(memory_format=torch.channels_last)),
        (nn.BatchNorm1d(3), torch.zeros(2, 5, 3).transpose(1, 2)),
        (nn.BatchNorm1d(3), torch.zeros(2, 3)),
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), torch.zeros(2, 4, 9, 8)),
        (nn.Conv2d(3, 6, 3, padding="same"), torch.zeros(2, 3, 9, 8)),
        (nn.Conv2d(3, 6, 3), torch.zeros(2, 3, 9, 8).to(memory_format=torch.channels_last)),
        (nn.Conv2d(3, 6, 1), torch.zeros(2, 3, 1, 1)),
        (nn.Conv2d(3, 6, 3), torch.zeros(3, 9, 8)),
        (nn.Flatten(1), torch.zeros(2, 3, 4, 5).transpose(1, 2)),
        (nn.Unflatten(1, (2, 2)), torch.zeros(2, 4, 5)),
    ],
    ids=str,
)
def test_results_made_directly_are_those_of_torch(layer: nn.Module, signal: torch.Tensor) -> None:
    expected = layer.eval()(signal)
    seen = {}

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            seen.update(shape=tuple(y.shape), strides=y.stride(), dtype=y.dtype)
            return y

    assert trace(Watching(), signal).source == "fake"
    assert seen == {"shape": tuple(expected.shape), "strides": expected.stride(), "dtype": expected.dtype}


def test_views_made_directly_share_their_memory() -> None:
    def written_through(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, w)
        for view in (y.view(3, 2, 2).transpose(1, 2), y.chunk(2, 1)[0], y.unsqueeze(0)):
            assert view.untyped_storage()._cdata == y.untyped_storage()._cdata
        y.view(3, 2, 2).transpose(1, 2).tanh_()
        return y

    node = only((4, 4), written_through, 3, 4)
    assert (node.activation, trace(Weight((4, 4), written_through), torch.zeros(3, 4)).source) == ("tanh", "fake")


def test_sizes_that_depend_on_known_numbers_are_exact() -> None:
    def masked(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        keep = torch.arange(4) % 2 == 0
        assert keep.any().item()
        y = F.linear(x, w)[:, keep]
        assert y.shape[1] == len(torch.nonzero(keep)) == 2
        return torch.cat([torch.tanh(y), torch.relu(F.linear(x, w)[:, ~keep])], 1)

    graph = trace(Weight((4, 4), masked), torch.zeros(3, 4))
    assert graph.source == "fake"


@pytest.mark.parametrize(
    "add",
    [
        lambda total, index, y: total.index_add(0, index, y),
        lambda total, _, y: total.scatter_add(0, torch.tensor([[1] * 8, [0] * 8, [1] * 8]), y),
        lambda total, _, y: total.scatter_reduce(0, torch.tensor([[1] * 8, [0] * 8, [1] * 8]), y, "sum"),
        lambda total, index, y: total.index_put((index,), y, accumulate=True),
    ],
    ids=["index_add", "scatter_add", "scatter_reduce", "index_put"],
)
def test_rows_keep_their_numbers_where_messages_are_added_up(
    add: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """As in graph networks: two edges end at one node."""

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        gate, up = add(x.new_zeros(2, 8), torch.tensor([1, 0, 1]), F.linear(x, w)).chunk(2, -1)
        return F.silu(gate) * up

    node = only((8, 4), function, 3, 4)
    assert node.blocks == {"gate": (range(4),), "up": (range(4, 8),)}
    assert node.confidence == 1


@pytest.mark.parametrize(("projected", "post_norm"), [(range(6), True), ((3,), False), ((), False)])
def test_a_stream_is_post_norm_where_every_sum_is_normalized_before_it_goes_on(
    projected: Sequence[int], post_norm: bool
) -> None:
    class Block(nn.Module):
        """The branch takes the normalized stream; what goes around is that too, or the stream itself."""

        def __init__(self, around: bool) -> None:
            super().__init__()
            self.norm, self.fc, self.around = nn.LayerNorm(8), nn.Linear(8, 8), around

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            normed = self.norm(x)
            return (normed if self.around else x) + self.fc(F.relu(normed))

    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(*(Block(layer in projected) for layer in range(6)))
    graph = trace(model, torch.zeros(2, 8))
    lasts = [node for node in graph if node.residual_last]
    assert [node.stream_depth for node in lasts] == [6] * 6
    assert {node.post_norm for node in lasts} == {post_norm}


@pytest.mark.parametrize(("tokens", "depths"), [(1, {6}), (16, {1, 2})])
def test_a_class_token_put_back_beside_the_patches_leaves_them_one_stream(tokens: int, depths: set[int]) -> None:
    class Block(nn.Module):
        """A position encoding and a layer; the former passes the first tokens by."""

        def __init__(self) -> None:
            super().__init__()
            self.position, self.fc = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, patches = x[:, :tokens], x[:, tokens:]
            x = torch.cat([first, patches + self.position(patches)], 1)
            return x + self.fc(F.relu(x))

    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(*(Block() for _ in range(3)))
    graph = trace(model, torch.zeros(2, tokens + 16, 8))
    assert {node.stream_depth for node in graph if node.residual_last} == depths


def test_an_einsum_of_three_factors_has_true_fans() -> None:
    """Experts, of which a gate makes a sum: what is summed is the fan_in, over experts and over their width."""

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        gate = torch.softmax(x[:, :4], -1)
        return torch.einsum("bh,ehd,be->bd", x, w, gate)

    node = only((4, 8, 5), function, 3, 8)
    assert (node.fans.fan_in, node.fans.fan_out) == (32, 5)


def test_a_model_that_differentiates_on_its_way_is_traced() -> None:
    class Force(nn.Module):
        """A force: the slope of an energy."""

        def __init__(self) -> None:
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(x).tanh().sum(), x, create_graph=True)
            return slope

    with torch.random.fork_rng(devices=[]):
        graph = trace(Force(), torch.zeros(2, 3))
    assert graph.source == "fake"
    assert [graph[f"energy.{place}.weight"].activation for place in (0, 2)] == ["tanh", "tanh"]


class Couplings(nn.Module):
    """Halves of a stream that take turns in adding to each other, as in NICE, or add to each other at once (RevNet)."""

    def __init__(self, layers: int, both: bool, forget: bool = False) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(layers * (2 if both else 1))]
        )
        self.both, self.forget, self.head = both, forget, nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nets = iter(self.nets)
        for net in nets:
            first, second = x.chunk(2, -1)
            second = second + net(first)
            if self.both:
                first = first + next(nets)(second)
            x = torch.cat([torch.tanh(first) if self.forget else first, second][:: 1 if self.both else -1], -1)
        return self.head(x)


@pytest.mark.parametrize(("both", "depth"), [(False, 5), (True, 10)])
def test_couplings_add_to_one_stream(both: bool, depth: int) -> None:
    graph = trace(Couplings(5, both), torch.zeros(3, 8))
    lasts = [node for node in graph if node.residual_last and node.is_weight]
    assert len(lasts) == depth
    assert {node.stream_depth for node in lasts} == {depth}


def test_a_half_beside_something_else_is_a_stream_of_its_own() -> None:
    graph = trace(Couplings(5, both=False, forget=True), torch.zeros(3, 8))
    assert {node.stream_depth for node in graph if node.residual_last and node.is_weight} == {1}


class Distances(nn.Module):
    """Scores by content, and by what a layer makes of constants that were joined."""

    def __init__(self) -> None:
        super().__init__()
        self.content, self.place, self.head = nn.Linear(8, 8), nn.Linear(2, 1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, apart = self.content(x), torch.arange(5.0)[None] - torch.arange(5.0)[:, None]
        scores = self.place(torch.stack([apart, apart.abs()], -1)).squeeze(-1)
        return self.head((y @ y.transpose(1, 2) + scores).softmax(-1) @ y)


def test_a_weight_that_takes_in_joined_constants_is_traced() -> None:
    node = trace(Distances(), torch.zeros(3, 5, 8))["place.weight"]
    assert node.evidence == "consumed by linear (weight) in place, then softmax"
    assert not node.state_before


class LongSum(nn.Module):
    """Layers side by side, whose results are added up one after the other."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.Linear(4, 4) for _ in range(count)]), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.layers[0](x)
        for layer in self.layers[1:]:
            total = total + layer(x)
        return self.head(total.relu())


def test_a_long_sum_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[int] = []
    events = Walker.events
    monkeypatch.setattr(Walker, "events", lambda self, value, *rest: met.append(value.id) or events(self, value, *rest))
    graph = trace(LongSum(60), torch.zeros(2, 4))
    assert {graph[f"layers.{i}.weight"].activation for i in range(60)} == {"relu"}
    assert len(met) < 20 * 60, "from each layer on, all later sums were walked"
