"""What looks like a fault and is none, and the faults beside it that are."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fanin
from fanin.comparison.workers import one_thread
from fanin.diagnoses import Diagnosis, Severity
from fanin.errors import FaninError, InputsError
from fanin.integrations import starts
from fanin.testing import assert_healthy


class Case(NamedTuple):
    model: nn.Module
    inputs: Any
    loss: Callable[[Any], Tensor] | None = None


def zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def network(*end: nn.Module, scale: float = 1.0) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4), *end)
    with torch.no_grad():
        model[4].weight *= scale
        model[4].bias.zero_()
    return model


class Controlled(nn.Module):
    """A second way whose last layer starts at zero, added to the first or multiplied with it."""

    def __init__(self, multiplied: bool) -> None:
        super().__init__()
        self.multiplied = multiplied
        self.first, self.control = nn.Linear(16, 48), nn.Linear(8, 32)
        self.zero, self.head = zeroed(nn.Linear(32, 48)), nn.Linear(48, 10)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        side = self.zero(functional.relu(self.control(condition)))
        first = self.first(x)
        result: Tensor = self.head(functional.relu(first * (1 + side) if self.multiplied else first + side))
        return result


class LogScale(nn.Module):
    """Glow's last layer: zeros, times the exponential of a learned scale that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.zero = nn.Linear(16, 64), zeroed(nn.Linear(64, 16))
        self.logs = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.zero(functional.relu(self.inner(x))) * torch.exp(3 * self.logs)
        return result


class Taught(nn.Module):
    """A network and a copy of it that is not trained, as the target of Q-learning or a teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), *network())
        self.target = deepcopy(self.online)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            aim = self.target(x)
        result: Tensor = self.online(x) - aim.max(-1, keepdim=True).values
        return result


class Queries(nn.Module):
    """An attention whose packed queries start at zero, as μP recommends, so that it starts uniform."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        with torch.no_grad():
            self.qkv.weight[:32] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return result


class Sines(nn.Module):
    """SIREN: layers sin(30 · (W x + b))."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2 if depth == 0 else 64, 64) for depth in range(4))
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(30 * layer(x))
        result: Tensor = self.head(x)
        return result


def sines() -> Case:
    model = Sines()
    fanin.initialize(model, torch.rand(64, 2) * 2 - 1, recipe="siren")
    return Case(model, torch.rand(64, 2) * 2 - 1)


def squared_error() -> Case:
    model, inputs, targets = network(), torch.randn(64, 16), torch.randn(64, 4)
    fanin.initialize(model, inputs)
    return Case(model, inputs, lambda output: functional.mse_loss(output, targets))


HEALTHY: dict[str, Callable[[], Case]] = {
    "one sigmoid": lambda: Case(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1), nn.Sigmoid()), X()),
    "one softplus": lambda: Case(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1), nn.Softplus()), X()),
    "many sigmoids": lambda: Case(network(nn.Sigmoid()), X()),
    "a small policy before a tanh": lambda: Case(network(nn.Tanh(), scale=0.01), X()),
    "a zero that is added beside": lambda: Case(Controlled(False), (X(), torch.randn(64, 8))),
    "a zero that modulates": lambda: Case(Controlled(True), (X(), torch.randn(64, 8))),
    "a zero log-scale": lambda: Case(nn.Sequential(nn.Linear(16, 16), *(LogScale() for _ in range(3))), X()),
    "a copy that is not trained": lambda: Case(Taught(), X()),
    "packed queries of zeros": lambda: Case(nn.Sequential(Queries(), Queries()), torch.randn(8, 12, 32)),
    "sines": sines,
    "a squared error after auto": squared_error,
}


def X() -> Tensor:
    return torch.randn(64, 16)


def judged(case: Case) -> Diagnosis:
    return fanin.diagnose(case.model, case.inputs, loss=case.loss)


@pytest.mark.parametrize("what", HEALTHY)
def test_a_start_that_is_meant_is_healthy(what: str) -> None:
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = [str(finding) for finding in judged(HEALTHY[what]()).findings if finding.severity is not Severity.NOTE]
    assert not found


class Looked(nn.Module):
    """An embedding of which some rows were never written."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(64, 16), nn.Linear(16, 64)
        with torch.no_grad():
            self.tokens.weight[50:] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.tokens(x))
        return result


class Experts(nn.Module):
    """A stack of experts that each drew the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.experts = nn.Parameter((torch.randn(1, 32, 32) / 32**0.5).repeat(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.einsum("bd,edf->ebf", functional.relu(self.first(x)), self.experts)
        result: Tensor = self.head(functional.relu(inner).mean(0))
        return result


class Last(nn.Module):
    """A recurrence, read at its end."""

    def __init__(self, layer: nn.RNNBase, gain: float) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, 4)
        nn.init.orthogonal_(layer.weight_hh_l0, gain)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer(x)[0][:, -1])
        return result


def shifted() -> Case:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 16, 4),
    )  # fmt: skip
    nn.init.constant_(model[1].bias, -10.0)
    return Case(model, torch.randn(16, 3, 8, 8))


def collapsed() -> Case:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()
            nn.init.normal_(self.body[4].bias, std=300.0)

        def forward(self, x: Tensor) -> Tensor:
            return functional.normalize(self.body(x), dim=-1)

    return Case(Siamese(), X())


def unaware() -> Case:
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    model[1].running_var.zero_()
    return Case(model.eval(), X())


FAULTY: dict[str, tuple[Callable[[], Case], str, str]] = {
    "rows of an embedding": (lambda: Case(Looked(), torch.randint(64, (8, 12))), "F107", "tokens.weight"),
    "equal experts": (lambda: Case(Experts(), X()), "F103", "experts"),
    "a recurrence that forgets": (
        lambda: Case(Last(nn.RNN(8, 32, batch_first=True), 0.2), torch.randn(8, 30, 8)), "F201", "layer.weight_hh_l0",
    ),
    "gates that are drawn too large": (
        lambda: Case(Last(nn.GRU(8, 32, batch_first=True), 30.0), torch.randn(8, 12, 8)), "F201", "layer.weight_hh_l0",
    ),
    "a norm's shift": (shifted, "F303", "2"),
    "an embedding that ignores its input": (collapsed, "F305", "normalize"),
    "a running variance of zero": (unaware, "F108", "1.running_var"),
}  # fmt: skip
MENDED = [what for what in FAULTY if what not in ("an embedding that ignores its input", "a running variance of zero")]
"""What a plan can mend: the one is a bias that no plan of weights changes, the other a buffer."""


@pytest.mark.parametrize("what", FAULTY)
def test_a_fault_beside_them_is_found(what: str) -> None:
    build, code, place = FAULTY[what]
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        case = build()
        diagnosis = judged(case)
        found = {(finding.code, finding.place.partition("#")[0]) for finding in diagnosis.findings}
        assert (code, place) in found
        if what in MENDED:
            fanin.apply(diagnosis.fix(), case.model, seed=0)
            assert code not in judged(case).codes


def test_a_cut_between_cloned_layers_is_no_copy() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.body.layers
            result: Tensor = self.head(second(first(x).detach()))
            return result

    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        diagnosis = fanin.diagnose(Cut(), torch.randn(8, 6, 32))
    assert "F102" in diagnosis.codes, "the layers are clones"
    (cut,) = (finding for finding in diagnosis.findings if finding.code == "F405")
    assert {name.rpartition("layers.0")[1] for name in (cut.place, *cut.places)} == {"layers.0"}
    assert len(cut.places) == 11, "every parameter of the first layer"


def test_a_model_without_values_is_not_healthy() -> None:
    diagnosis = fanin.diagnose(nn.Linear(8, 4, device="meta"), torch.zeros(2, 8))
    assert diagnosis.codes == ("F109",)
    assert not diagnosis.ok


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore:.*deprecated:DeprecationWarning")
def test_what_was_not_looked_into_is_said() -> None:
    with torch.random.fork_rng(devices=[]):
        scripted = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
        signals = fanin.measure(nn.Sequential(scripted, nn.Linear(8, 4)), torch.ones(4, 8))
    assert signals.notes == ("scripted modules were not looked into: 0",)


def test_inputs_and_losses_that_are_none_are_refused() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Linear(4, 4)
    with pytest.raises(InputsError, match="not-a-number"):
        fanin.measure(model, torch.full((2, 4), torch.nan))
    with pytest.raises(InputsError, match=r"loss=lambda output"):
        fanin.diagnose(model, torch.ones(2, 4), loss=3)  # type: ignore[arg-type]


def test_codes_may_be_one_text() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Linear(16, 16)
        nn.init.constant_(model.weight, 0.1)
    inputs = torch.ones(2, 16)
    assert fanin.diagnose(model, inputs, select="F101").codes == ("F101",)
    with pytest.raises(AssertionError, match="F101"):
        assert_healthy(model, inputs, select="F1")
    with pytest.raises(FaninError, match="F999"):
        starts.gate("raise", "error", "F999", (), None)


@pytest.mark.parametrize("form", ["matrix_exp", "cayley", "householder"])
def test_a_parametrized_orthogonal_matrix_has_a_form_of_its_own(form: str) -> None:
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.utils.parametrizations.orthogonal(nn.Linear(16, 4), orthogonal_map=form)
        model = nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 8))
        nn.init.constant_(model[2].weight, 0.1)
        diagnosis = fanin.diagnose(model, X())
        assert {finding.place for finding in diagnosis.findings if finding.code == "F101"} == {"2.weight"}
        fanin.apply(diagnosis.fix(), model, seed=0)


class Lasting(nn.Module):
    """An LSTM written by hand, with a bias of its own for every gate: i, f, g, o."""

    def __init__(self, forget: float) -> None:
        super().__init__()
        self.inward, self.around, self.head = nn.Linear(8, 64), nn.Linear(16, 64, bias=False), nn.Linear(16, 4)
        with torch.no_grad():
            self.inward.bias.zero_()
            self.inward.bias[16:32] = forget

    def forward(self, x: Tensor) -> Tensor:
        state = memory = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            i, f, g, o = (self.inward(step) + self.around(state)).chunk(4, -1)
            memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
            state = o.sigmoid() * memory.tanh()
        result: Tensor = self.head(state)
        return result


class Biased(nn.Module):
    """A bias that is added outside of the layer."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(16, 64, bias=False), nn.Linear(64, 4)
        self.shift = nn.Parameter(torch.full((64,), bias))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(functional.relu(self.first(x) + self.shift))
        return result


class Routed(nn.Module):
    """Experts by the largest of a router's outputs, which no gradient reaches; weighed by its share, one does."""

    def __init__(self, weighed: bool) -> None:
        super().__init__()
        self.weighed, self.router = weighed, nn.Linear(16, 4)
        self.experts, self.head = nn.Parameter(torch.randn(4, 16, 16) / 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(-1)
        most, chosen = share.max(-1)
        x = torch.einsum("bi,bio->bo", x, self.experts[chosen])
        result: Tensor = self.head(x * most[:, None] if self.weighed else x)
        return result


class Complex(nn.Module):
    """A spectral layer."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 9, dtype=torch.cfloat) * scale)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.fft.irfft(torch.fft.rfft(x) @ self.weight, n=16))
        return result


def small_before_batch_norm(std: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    nn.init.normal_(model[0].weight, std=std)
    return model


def density(scale: float) -> Callable[[Tensor], Tensor]:
    """A negative log-likelihood that is below zero for outputs of zero."""
    return lambda out: (out.square() / 2 * scale - 1).mean()


SEQUENCE = torch.randn(8, 12, 8, generator=torch.Generator().manual_seed(1))
PAIRS: list[tuple[str, str, Callable[[], Case], Callable[[], Case]]] = [
    (
        "a loss that is not finite",
        "F310",
        lambda: Case(network(), X(), lambda out: (out.detach().square().sum() * 0 - 1).log() + out.mean()),
        lambda: Case(network(), X(), lambda out: (out.square().sum() + 1).log()),
    ),
    (
        "a forget gate written by hand",
        "F206",
        lambda: Case(Lasting(-3.0), SEQUENCE),
        lambda: Case(Lasting(0.0), SEQUENCE),
    ),
    ("a bias beside the layer", "F208", lambda: Case(Biased(50.0), X()), lambda: Case(Biased(1.0), X())),
    (
        "a weight under the ε of batch norm",
        "F301",
        lambda: Case(small_before_batch_norm(1e-5), X()),
        lambda: Case(small_before_batch_norm(0.01), X()),
    ),
    (
        "a router that is only asked for the largest",
        "F405",
        lambda: Case(Routed(weighed=False), X()),
        lambda: Case(Routed(weighed=True), X()),
    ),
]


@pytest.mark.parametrize(("name", "code", "faulty", "healthy"), PAIRS, ids=[name for name, *_ in PAIRS])
def test_a_fault_and_what_looks_like_it(
    name: str, code: str, faulty: Callable[[], Case], healthy: Callable[[], Case]
) -> None:
    for build, expected in ((faulty, True), (healthy, False)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            case = build()
            found = fanin.diagnose(case.model, case.inputs, loss=case.loss).findings
        assert any(finding.code == code and finding.severity is not Severity.NOTE for finding in found) == expected, (
            found
        )


HARMLESS: dict[str, Callable[[], Case]] = {
    "a loss that can be negative": lambda: Case(network(), X(), density(10.0)),
    "complex numbers": lambda: Case(Complex(0.2), X()),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_no_fault(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        case = HARMLESS[name]()
        assert_healthy(case.model, case.inputs, loss=case.loss)
