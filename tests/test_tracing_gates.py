"""Gates of a state, told from all other gates by what they multiply."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin.graph import Role

Step = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
WIDTH = 6
HELD = {"keep", "write"}


class Written(nn.Module):
    """A recurrence of two packed layers, whose step is given."""

    def __init__(self, step: Step, parts: int, bias: bool = True) -> None:
        super().__init__()
        self.inward, self.around = nn.Linear(4, parts * WIDTH), nn.Linear(WIDTH, parts * WIDTH, bias=bias)
        self.head = nn.Linear(WIDTH, 2)
        self.step = step

    def states(self, x: Tensor) -> list[Tensor]:
        state = memory = x.new_zeros(len(x), WIDTH)
        states = []
        for time in range(x.shape[1]):
            state, memory = self.step(self.inward(x[:, time]), self.around(state), state, memory)
            states.append(state)
        return states

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.states(x)[-1])


def lstm(inward: Tensor, around: Tensor, _: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (inward + around).chunk(4, -1)
    memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
    return o.sigmoid() * memory.tanh(), memory


def gates(inward: Tensor, around: Tensor) -> tuple[Tensor, Tensor]:
    """The update gate and the candidate of a GRU; rows are reset, update, new."""
    (r, z, n), (reset, update, new) = inward.chunk(3, -1), around.chunk(3, -1)
    return torch.sigmoid(z + update), torch.tanh(n + torch.sigmoid(r + reset) * new)


def gru_of_torch(inward: Tensor, around: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    kept, new = gates(inward, around)
    return (1 - kept) * new + kept * state, memory


def gru_of_cho(inward: Tensor, around: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    taken, new = gates(inward, around)
    return taken * new + (1.0 - taken) * state, memory


def gru_by_difference(inward: Tensor, around: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    taken, new = gates(inward, around)
    return state + taken * (new - state), memory


def gru_from_the_candidate(inward: Tensor, around: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    kept, new = gates(inward, around)
    return new + kept * (state - new), memory


def gru_by_lerp(inward: Tensor, around: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    taken, new = gates(inward, around)
    return torch.lerp(state, new, taken), memory


def gru_by_addcmul(inward: Tensor, around: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    kept, new = gates(inward, around)
    return torch.addcmul((1 - kept) * new, kept, state), memory


GRUS = [
    (gru_of_torch, "keep"),
    (gru_of_cho, "write"),
    (gru_by_difference, "write"),
    (gru_from_the_candidate, "keep"),
    (gru_by_lerp, "write"),
    (gru_by_addcmul, "keep"),
]


@pytest.mark.parametrize(("step", "gate"), GRUS, ids=lambda value: getattr(value, "__name__", value))
def test_the_update_gate_of_a_gru_is_found_however_it_is_written(step: Step, gate: str) -> None:
    graph = fanin.trace(Written(step, 3), torch.randn(2, 4, 4))
    for name in ("inward.weight", "inward.bias", "around.weight", "around.bias"):
        assert graph[name].blocks[gate] == (range(WIDTH, 2 * WIDTH),)
        assert HELD.intersection(graph[name].blocks) == {gate}


def test_the_forget_gate_of_an_lstm_is_found_and_every_gate_is_a_block() -> None:
    node = fanin.trace(Written(lstm, 4), torch.randn(2, 4, 4))["around.weight"]
    assert [block.rows[0].start // WIDTH for block in node.axes.blocks] == [0, 1, 2, 3]
    assert node.blocks["keep"] == (range(WIDTH, 2 * WIDTH),)


@pytest.mark.parametrize(("step", "parts"), [(lstm, 4), *((step, 3) for step, _ in GRUS)])
def test_auto_opens_the_memory_by_one_bias(step: Step, parts: int) -> None:
    model = Written(step, parts)
    closed = Written(step, parts)
    x = torch.randn(64, 16, 4)
    fanin.initialize(model, x, seed=0)
    assert model.inward.bias.abs().sum() == WIDTH
    assert not model.around.bias.any()
    closed.load_state_dict(model.state_dict())
    with torch.no_grad():
        closed.inward.bias.zero_()
    assert memory(model, x) > 2 * memory(closed, x)


def memory(model: Written, x: Tensor) -> float:
    """The size of the last state's gradient at the first input."""
    given = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.states(given)[-1].sum(), given)
    return gradient[:, 0].norm().item()


def test_where_only_the_state_brings_a_bias_that_one_opens_the_gate() -> None:
    model = Written(gru_of_torch, 3)
    model.inward.bias = None
    fanin.initialize(model, torch.randn(2, 4, 4), seed=0)
    assert model.around.bias.sum() == WIDTH


class Minimal(nn.Module):
    """A gated unit whose one gate writes over the state and, elsewhere, multiplies what goes into a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.new, self.head = nn.Linear(4 + WIDTH, WIDTH), nn.Linear(4 + WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), WIDTH)
        for step in x.unbind(1):
            gate = torch.sigmoid(self.gate(torch.cat([step, state], 1)))
            state = (1 - gate) * state + gate * torch.tanh(self.new(torch.cat([step, gate * state], 1)))
        return self.head(state)


def test_a_gate_that_does_two_things_is_the_gate_of_the_state() -> None:
    graph = fanin.trace(Minimal(), torch.randn(2, 4, 4))
    assert [node.gate for node in graph] == ["write", "write", "factor", "factor", "", ""]


def elman(inward: Tensor, around: Tensor, _: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tanh(inward + around), memory


@pytest.mark.parametrize(
    ("step", "parts", "state"),
    [(lstm, 4, "lstm"), (elman, 1, "rnn_tanh"), *((step, 3, "gru") for step, _ in GRUS)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_takes_in_the_state_of_a_written_recurrence_knows_it(step: Step, parts: int, state: str) -> None:
    graph = fanin.trace(Written(step, parts), torch.randn(2, 4, 4))
    assert {node.name: node.state_before for node in graph if node.state_before} == {"head.weight": state}


class Read(nn.Module):
    """What reads the states of a layer: all of them or the last, at once or behind another layer."""

    def __init__(self, layer: nn.RNNBase, last: bool, hidden: bool) -> None:
        super().__init__()
        self.layer, self.last = layer, last
        self.dropout, width = nn.Dropout(0.1), layer.hidden_size * (1 + layer.bidirectional)
        self.hidden = nn.Linear(width, width) if hidden else None
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.layer(x)
        x = self.dropout(states[:, -1] if self.last else states)
        return self.head(x if self.hidden is None else torch.relu(self.hidden(x)))


LAYERS: list[tuple[Callable[[], nn.RNNBase], str]] = [
    (lambda: nn.LSTM(8, 64, 2, batch_first=True), "lstm"),
    (lambda: nn.GRU(8, 64, batch_first=True, bidirectional=True), "gru"),
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(("build", "state"), LAYERS, ids=[state for _, state in LAYERS])
def test_what_reads_a_state_puts_out_unit_variance(
    build: Callable[[], nn.RNNBase], state: str, hidden: bool, last: bool
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Read(build(), last, hidden).eval(), torch.randn(256, 40, 8)
    reader = "hidden.weight" if hidden else "head.weight"
    plan = fanin.plan(model, x)
    deeper = [row.node.name for row in plan if row.node.state_before]
    assert deeper == ["layer.weight_ih_l1"] * (state == "lstm") + [reader]
    assert plan[reader].node.state_before == state
    powers = []
    for seed in range(8):
        fanin.apply(plan, model, seed=seed)
        with torch.no_grad():
            powers.append(model(x).square().mean())
    # The states of one layer are alike from step to step, so that those of the next grow larger than of fresh inputs.
    assert 0.5 < torch.stack(powers).mean().item() < 2


class Highway(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.made = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.transform = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for made, transform in zip(self.made, self.transform, strict=True):
            gate = torch.sigmoid(transform(x))
            x = gate * torch.relu(made(x)) + (1 - gate) * x
        return x


def test_every_transform_gate_of_a_highway_writes() -> None:
    graph = fanin.trace(Highway(3), torch.randn(2, WIDTH))
    assert [node.gate for node in graph] == ["factor"] * 6 + ["write"] * 6


def test_a_highway_before_an_lstm_leaves_the_forget_gate_at_one() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.highway, self.layer = Highway(10), nn.LSTM(WIDTH, WIDTH, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            states, _ = self.layer(self.highway(x))
            result: Tensor = states
            return result

    model = Both()
    fanin.initialize(model, torch.randn(2, 5, WIDTH), seed=0)
    assert (model.layer.bias_ih_l0[WIDTH : 2 * WIDTH] == 1).all()
    assert model.highway.transform[0].bias.tolist() == pytest.approx([-math.log(9)] * WIDTH)


class Gated(nn.Module):
    """Gates that multiply something else than a state."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second, self.third = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3)) for _ in "abc")

    def forward(self, x: Tensor) -> Tensor:
        for first, second, third in zip(self.first, self.second, self.third, strict=True):
            x = self.block(x, first, second, third)
        return x

    def block(self, x: Tensor, first: nn.Module, second: nn.Module, third: nn.Module) -> Tensor:
        if self.kind == "squeeze and excitation":
            made = torch.relu(first(x))
            return x + made * torch.sigmoid(third(torch.relu(second(made))))
        if self.kind == "two gates in a row":
            made = torch.relu(first(x))
            made = made * torch.sigmoid(second(made))
            return x + made * torch.sigmoid(third(made))
        if self.kind == "gated linear unit":
            return x + third(torch.sigmoid(first(x)) * second(x))
        assert self.kind == "a gate of the output"
        return torch.sigmoid(first(x)) * torch.tanh(x + second(x)) + third(x)


KINDS = ("squeeze and excitation", "two gates in a row", "gated linear unit", "a gate of the output")


@pytest.mark.parametrize("kind", KINDS)
def test_other_gates_are_no_gates_of_a_state(kind: str) -> None:
    assert not any(node.gate in HELD for node in fanin.trace(Gated(kind), torch.randn(2, WIDTH)))


def test_parts_of_one_sigmoid_are_not_taken_for_one_gate() -> None:
    def step(inward: Tensor, around: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        i, f = torch.sigmoid(inward + around).chunk(2, -1)
        memory = f * memory + i
        return memory.tanh(), memory

    graph = fanin.trace(Written(step, 2), torch.randn(2, 4, 4))
    assert not any(node.gate in HELD or HELD.intersection(node.blocks) for node in graph)


AROUND: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda state, w: state @ w,
    "mm": torch.mm,
    "einsum": lambda state, w: torch.einsum("bi,io->bo", state, w),
    "from the left": lambda state, w: (w @ state.T).T,
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_a_matrix_that_meets_a_state_of_zeros_first_is_recurrent(around: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Elman(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inward, self.around = nn.Parameter(torch.zeros(4, WIDTH)), nn.Parameter(torch.zeros(WIDTH, WIDTH))
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(len(x), WIDTH)
            for step in x.unbind(1):
                state = torch.tanh(step @ self.inward + around(state, self.around))
            return self.head(state)

    model = Elman()
    fanin.initialize(model, torch.randn(2, 4, 4), seed=0)
    assert torch.allclose(model.around @ model.around.T, torch.eye(WIDTH), atol=1e-5)
    assert model.inward.std() > 0.1


class Coupling(nn.Module):
    """One coupling of a flow: a half is scaled by an exponential and shifted, both made of the other half."""

    def __init__(self, bound: str, packed: bool) -> None:
        super().__init__()
        self.enter, self.head, self.bound, self.packed = nn.Linear(2, WIDTH), nn.Linear(4, 2), bound, packed
        self.leave = nn.Linear(WIDTH, 4) if packed else nn.ModuleList([nn.Linear(WIDTH, 2) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        hidden = torch.relu(self.enter(first))
        scale, shift = self.leave(hidden).chunk(2, -1) if self.packed else (part(hidden) for part in self.leave)
        if self.bound == "tanh":
            scale = 0.5 * torch.tanh(scale)
        factor = torch.sigmoid(scale) if self.bound == "sigmoid" else torch.exp(-scale)
        return self.head(torch.cat([second * factor + shift, first], -1))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("bound", ["", "tanh", "sigmoid"])
def test_exponents_of_factors_are_told_from_factors(bound: str, packed: bool) -> None:
    graph = fanin.trace(Coupling(bound, packed), torch.zeros(3, 4))
    if packed:
        assert list(graph["leave.weight"].blocks) == ["gate" if bound == "sigmoid" else "exponent", "plain"]
    else:
        assert graph["leave.0.weight"].gate == ("factor" if bound == "sigmoid" else "exponent")
        assert graph["leave.1.weight"].gate == ""
    assert graph["enter.weight"].gate == ""


def test_an_exponential_that_no_signal_meets_makes_no_exponent() -> None:
    class Positive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            weights = torch.exp(self.enter(x))
            return torch.exp(torch.tanh(self.leave(weights / weights.sum(-1, keepdim=True))))

    assert {node.gate for node in fanin.trace(Positive(), torch.zeros(3, 4))} == {""}


class Stacked(nn.Module):
    """Layers that keep their weights in one parameter, or one of them again and again."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.w, self.b, self.again = nn.Parameter(torch.randn(6, 8, 8)), nn.Parameter(torch.zeros(6, 8)), again
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for k in range(6):
            layer = 0 if self.again else k
            x = torch.relu(x @ self.w[layer] + self.b[layer])
        return self.head(x)


def test_layers_stacked_in_one_parameter_are_no_recurrence() -> None:
    stacked, again = (fanin.trace(Stacked(again), torch.randn(2, 8)) for again in (False, True))
    assert not stacked["w"].feedback
    assert stacked["b"].role is Role.BIAS
    assert not stacked["head.weight"].state_before
    assert again["w"].feedback


class InThirds(nn.Module):
    """A recurrence whose gates are thirds of one matrix, cut anew at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.w, self.head = nn.Linear(8, 24), nn.Parameter(torch.randn(24, 8)), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            reset, update, new = self.w.chunk(3)
            a, b, c = self.inward(x[:, t]).chunk(3, -1)
            r, z = torch.sigmoid(h @ reset.T + a), torch.sigmoid(h @ update.T + b)
            h = (1 - z) * torch.tanh((r * h) @ new.T + c) + z * h
        return self.head(h)


def test_parts_of_one_matrix_at_every_step_are_a_recurrence() -> None:
    assert fanin.trace(InThirds(), torch.randn(2, 5, 8))["w"].feedback


class Looked(nn.Module):
    """A table read at places that many steps computed."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(8, 4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(8)
        for _ in range(40):
            places = (places + places) % 7
        return self.head(x + self.table[places])


def test_places_that_were_computed_in_many_steps_take_no_longer() -> None:
    assert fanin.trace(Looked(), torch.randn(2, 8, 4))["table"].role is Role.POSITION


class Repeated(nn.Module):
    """A function with two ways from what it takes in to what it puts out, again and again, before a last one."""

    def __init__(self, step: Callable[[Tensor], Tensor], last: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.step, self.last = nn.Linear(8, 8), nn.Linear(8, 8), step, last

    def forward(self, x: Tensor) -> Tensor:
        made = self.first(x) * self.second(x).sigmoid() if self.step is swap else self.first(x) @ self.second(x).mT
        for _ in range(36):
            made = self.step(made)
        return self.last(made, x)


def swap(signal: Tensor) -> Tensor:
    first, second = signal.chunk(2, -1)
    return torch.cat((second, first), -1)


@pytest.mark.parametrize(
    ("step", "last", "activation"),
    [
        (lambda s: s + 0.1 * s * (1 - s), lambda s, x: s.softmax(-1) @ x, "softmax_q"),
        (swap, lambda s, x: s.relu(), "gate_value"),
    ],
    ids=["scores", "gate"],
)
def test_many_ways_to_one_place_take_no_longer(
    step: Callable[[Tensor], Tensor], last: Callable[[Tensor, Tensor], Tensor], activation: str
) -> None:
    assert fanin.trace(Repeated(step, last), torch.randn(2, 4, 8))["first.weight"].activation == activation


class Experts(nn.Module):
    """Two layers of experts in one parameter each, with a bias for each expert, beside positions."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], experts_last: bool) -> None:
        super().__init__()
        self.enter, self.head, self.product = nn.Linear(5, 8), nn.Linear(8, 3), product
        self.places, self.weight = nn.Parameter(torch.zeros(6, 8)), nn.Parameter(torch.randn(4, 8, 8))
        self.bias = nn.Parameter(torch.zeros(4, 8) if experts_last else torch.zeros(4, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.axis = -2 if experts_last else 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x) + self.places
        x = x + self.attention(x, x, x)[0]
        return self.head(torch.relu(self.product(x, self.weight) + self.bias).mean(self.axis))


EXPERTS = {
    "einsum": (lambda x, w: torch.einsum("btd,edf->btef", x, w), True),
    "matmul": (lambda x, w: x.flatten(0, 1) @ w, False),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_a_vector_for_each_matrix_of_a_stack_is_a_bias(name: str) -> None:
    graph = fanin.trace(Experts(*EXPERTS[name]), torch.randn(2, 6, 5))
    assert graph["bias"].role is Role.BIAS
    assert graph["places"].role is Role.POSITION
