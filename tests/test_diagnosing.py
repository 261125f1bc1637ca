"""`diagnose` on models: faults are found where they are, healthy models and intended zeros are left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fanin.applying import apply
from fanin.diagnoses import Diagnosis, Finding, Severity
from fanin.diagnosing import diagnose, judge
from fanin.errors import FaninError
from fanin.measuring import measure
from faults import FAULTS, Fault
from faults.cases import Attention, Case, Decoder, Residual, cross_entropy, floats, mlp, scaled, tokens
from faults.roles import Gated

FIXED_LEAST = 0.9
UNFIXED = {
    "gated_explosion": "a product of two signals is not homogeneous: no gain holds it at every scale",
    "vanishing_hard_sigmoid": "a hard sigmoid that carries its signal is saturated in part",
    "deep_sigmoid": "sigmoids lose correlation at any gain that does not saturate them",
    "saturated_value_head": "a regression that starts at random costs more than one that starts at zero",
    "sine_with_wrong_scale": "the factor within the sine stays",
}
"""What one round of edits leaves with a finding, and why."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are quicker in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def found(fault: Fault, diagnosis: Diagnosis) -> bool:
    """Whether the fault is named by its code, at its place."""
    return any(
        finding.code in fault.codes and any(fnmatch(place, glob) for glob in fault.places)
        for finding in diagnosis.findings
        for place in (finding.place, *finding.places)
    )


@pytest.mark.parametrize("fault", FAULTS.values(), ids=lambda fault: fault.name)
def test_fault_is_found_and_mended(fault: Fault) -> None:
    case = fault.make()
    diagnosis = diagnose(case.model, case.inputs, loss=case.loss)
    assert found(fault, diagnosis), str(diagnosis)
    if fault.fixable and fault.name not in UNFIXED:
        apply(diagnosis.fix(), case.model, seed=1)
        after = diagnose(case.model, case.inputs, loss=case.loss)
        assert after.ok, str(after)


def test_what_is_not_mended_is_the_exception() -> None:
    fixable = [fault.name for fault in FAULTS.values() if fault.fixable]
    assert set(UNFIXED) <= set(fixable)
    assert 1 - len(UNFIXED) / len(fixable) >= FIXED_LEAST


def zero_head() -> Case:
    model = mlp(16, 64, 64, 10)
    nn.init.zeros_(model[4].weight)
    return Case(model, floats(32, 16), cross_entropy(10))


class Basic(nn.Module):
    """A residual block whose last norm's scale starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def zero_last_scale() -> Case:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    return Case(nn.Sequential(nn.Conv2d(3, 16, 3), *(Basic(16) for _ in range(3)), *head), floats(8, 3, 12, 12))


def zero_gates() -> Case:
    return Case(nn.Sequential(*(Gated(mlp(16, 32, 16)) for _ in range(4)), nn.Linear(16, 4)), floats(16, 16))


class Adapted(nn.Module):
    """A frozen layer with a low-rank update whose second factor starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(16, 24).requires_grad_(False)
        self.down, self.up = nn.Linear(16, 4, bias=False), nn.Linear(4, 24, bias=False)
        nn.init.zeros_(self.up.weight)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(F.relu(self.base(x) + self.up(self.down(x))))
        return result


def zero_adapter() -> Case:
    return Case(Adapted(), floats(16, 16), cross_entropy(4))


def zero_branch_ends() -> Case:
    branches = [Residual(nn.LayerNorm(32), Attention(32)) for _ in range(3)]
    for branch in branches:
        nn.init.zeros_(branch.branch[1].o.weight)
    return Case(nn.Sequential(nn.Linear(32, 32), *branches, nn.Linear(32, 4)), floats(4, 8, 32), cross_entropy(4))


def decoder() -> Case:
    return Case(Decoder(), tokens(4, 12, below=64), cross_entropy(64))


def tied_decoder() -> Case:
    return Case(Decoder(tied=True), tokens(4, 12, below=64), cross_entropy(64))


def he_net() -> Case:
    return Case(mlp(*[64] * 12, 10), floats(64, 64), cross_entropy(10))


def default_net() -> Case:
    return Case(mlp(16, 64, 64, 10, gain=None), floats(32, 16), cross_entropy(10))


def critical_tanh() -> Case:
    model = mlp(*[128] * 15, 10, act=nn.Tanh, gain=1.1)
    return Case(model, floats(32, 128), cross_entropy(10))


def default_lstm() -> Case:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(8, 32, num_layers=2, batch_first=True)
            self.head = nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.rnn(x)[0][:, -1])
            return result

    return Case(Reader(), floats(8, 12, 8), cross_entropy(4))


def default_vgg() -> Case:
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((3, 16), (16, 32), (32, 32)):
        layers += [scaled(nn.Conv2d(fan_in, fan_out, 3, padding=1), 2**0.5), nn.ReLU(), nn.MaxPool2d(2)]
    return Case(nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10)), floats(8, 3, 16, 16), cross_entropy(10))


def generator_with_norms() -> Case:
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((16, 32), (32, 16)):
        layers += [nn.ConvTranspose2d(fan_in, fan_out, 4, 2, 1), nn.BatchNorm2d(fan_out), nn.ReLU()]
    return Case(nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh()), floats(8, 16, 4, 4))


HEALTHY: tuple[Callable[[], Case], ...] = (
    zero_head,
    zero_last_scale,
    zero_gates,
    zero_adapter,
    zero_branch_ends,
    decoder,
    tied_decoder,
    he_net,
    default_net,
    critical_tanh,
    default_lstm,
    default_vgg,
    generator_with_norms,
)


@pytest.mark.parametrize("build", HEALTHY, ids=lambda build: build.__name__)
def test_healthy_model_is_left_alone(build: Callable[[], Case]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        case = build()
    diagnosis = diagnose(case.model, case.inputs, loss=case.loss)
    assert diagnosis.ok, str(diagnosis)


def timm_model(name: str) -> tuple[nn.Module, Any]:
    timm = pytest.importorskip("timm")
    return timm.create_model(name), floats(2, 3, 96, 96)


def torchvision_model(name: str) -> tuple[nn.Module, Any]:
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.get_model(name, weights=None), floats(2, 3, 64, 64)


def transformers_model(name: str) -> tuple[nn.Module, Any]:
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    config = kind.config_class(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    return kind(config), {"input_ids": tokens(2, 10, below=128)}


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (timm_model, "resnet18"),
        (timm_model, "mobilenetv3_small_050"),
        (torchvision_model, "shufflenet_v2_x0_5"),
        (torchvision_model, "mnasnet0_5"),
        (transformers_model, "BertModel"),
        (transformers_model, "GPT2LMHeadModel"),
        (transformers_model, "LlamaForCausalLM"),
        (transformers_model, "GPTNeoXForCausalLM"),
    ],
)
def test_library_model_has_no_error(load: Callable[[str], tuple[nn.Module, Any]], name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = load(name)
    diagnosis = diagnose(model, inputs)
    assert not [finding for finding in diagnosis.findings if finding.severity is Severity.ERROR], str(diagnosis)


def test_nothing_of_the_model_changes(untouched_random_state: None) -> None:
    case = FAULTS["constant_hidden"].make()
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    diagnose(case.model, case.inputs, loss=case.loss)
    assert all(torch.equal(before[name], value) for name, value in case.model.state_dict().items())
    assert all(parameter.grad is None for parameter in case.model.parameters())


def test_codes_are_selected_and_ignored() -> None:
    case = FAULTS["unit_normal_weights"].make()
    everything = diagnose(case.model, case.inputs, loss=case.loss)
    assert {"F201", "F302"} <= set(everything.codes)
    assert diagnose(case.model, case.inputs, loss=case.loss, select=["F2"]).codes == ("F201",)
    assert "F201" not in diagnose(case.model, case.inputs, loss=case.loss, ignore=["F201"]).codes
    with pytest.raises(FaninError, match="F999"):
        diagnose(case.model, case.inputs, ignore=["F999"])


def test_signals_can_be_judged_without_the_model() -> None:
    case = FAULTS["forgotten_parameter"].make()
    signals = measure(case.model, case.inputs, loss=case.loss)
    assert judge(signals).codes == diagnose(case.model, case.inputs, loss=case.loss).codes


def same(place: str, seen: str = "all zero", **more: Any) -> Finding:
    return Finding("F303", Severity.ERROR, place, seen, "why", "remedy", **more)


def printed(*findings: Finding) -> list[str]:
    nothing = judge(measure(nn.Linear(2, 2)))
    return str(replace(nothing, findings=findings)).splitlines()


def test_one_fault_of_many_layers_is_printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lines = printed(*(same(f"layers.{place}") for place in range(40)))
    assert lines[:2] == ["F303 error: 40 places: layers.0, layers.1, layers.2, …: all zero", "    why: why"]
    assert lines[3] == "40 errors", "every finding is counted"
    assert printed(same("a"), same("b", "half zero"))[0] == "F303 error: 2 places: a, b: at the first, all zero"
    assert printed(same("a", places=("b", "c")), same("d"))[0] == "F303 error: 4 places: a, b, c, …: all zero"
    assert printed(same("", places=("b",)))[0] == "F303 error: the model (and 1 more): all zero"
    assert printed(same("a"))[0] == "F303 error: a: all zero"


def test_what_is_mended_otherwise_is_printed_by_itself() -> None:
    other = replace(same("b"), remedy="another")
    assert [line for line in printed(same("a"), other, same("c")) if line.startswith("F303")] == [
        "F303 error: 2 places: a, c: all zero",
        "F303 error: b: all zero",
    ]
