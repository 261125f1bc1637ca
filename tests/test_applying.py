"""The writer: all or nothing, each parameter once, and whatever wraps or parametrizes a layer."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DataParallel
from torch.nn.utils import parametrizations, parametrize

import fanin
from fanin import matching, schemes
from fanin.errors import ApplyError, FaninError, PlanError, SchemeError
from fanin.fans import Axes, Block
from fanin.graph import ParameterNode, Role
from fanin.plans import Plan
from fanin.rows import Row
from fanin.schemes import Normal, Orthogonal, Scheme, Zeros
from fanin.verification import moments

pytestmark = pytest.mark.usefixtures("untouched_random_state")

Build = Callable[[], nn.Module]


def built(build: Build) -> nn.Module:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's older weight_norm
        torch.manual_seed(0)
        return build()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 6), nn.BatchNorm1d(6))


class Expanded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.ones(1, 4).expand(4, 4))


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 64, dtype=torch.complex64))


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.counts = nn.Parameter(torch.ones(3, 3, dtype=torch.int32), requires_grad=False)


class LowRank(nn.Module):
    """W + B·A, as adapters are written: without an inverse."""

    def __init__(self, rows: int, columns: int, start: float = 0.0) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(2, columns))
        self.up = nn.Parameter(torch.full((rows, 2), start))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


class Positive(nn.Module):
    """Nothing that crosses zero can be held, and there is no inverse."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.exp()


class Symmetric(nn.Module):
    """A square matrix from the numbers on and above its diagonal."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        upper = torch.zeros(4, 4, device=numbers.device)
        rows, columns = torch.triu_indices(4, 4, device=numbers.device)
        return upper.index_put((rows, columns), numbers) + upper.index_put((columns, rows), numbers)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        rows, columns = torch.triu_indices(4, 4, device=weight.device)
        return weight[rows, columns] / 2


def adapted(start: float = 0.0) -> nn.Module:
    layer = nn.Linear(8, 6)
    parametrize.register_parametrization(layer, "weight", LowRank(6, 8, start))
    return layer


def with_parametrization(step: nn.Module, layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", step)
    return layer


def old_weight_norm(layer: nn.Module) -> nn.Module:
    return nn.utils.weight_norm(layer)


REFUSALS: list[tuple[str, Build, str, Scheme, str]] = [
    ("orthogonal bias", net, "3.bias", Orthogonal(), "no matrix"),
    ("delta-orthogonal even kernel", net, "0.weight", schemes.DeltaOrthogonal(), "odd kernel"),
    ("expanded memory", Expanded, "weight", Normal(1.0), "share memory"),
    ("integers", Counts, "counts", Normal(1.0), "int32"),
    ("beyond single precision", net, "3.weight", Normal(1e39), "up to 6.8e"),
    ("beyond half precision", lambda: net().half(), "3.weight", Normal(1e6), "float16 holds, up to 6.55e"),
    ("a constant beyond half precision", lambda: net().half(), "3.bias", schemes.Constant(1e5), "up to 1e"),
    ("a range beyond single precision", net, "3.weight", schemes.Uniform(-3e38, 3e38), "range of float32"),
    ("spectral norm", lambda: parametrizations.spectral_norm(nn.Linear(6, 4)), "weight", Normal(1.0), "singular value"),
    ("old spectral norm", lambda: nn.utils.spectral_norm(nn.Linear(6, 4)), "weight", Orthogonal(), "in place of"),
    ("orthogonal", lambda: parametrizations.orthogonal(nn.Linear(6, 4)), "weight", Normal(1.0), "orthogonal matrices"),
    ("no inverse", lambda: with_parametrization(Positive(), nn.Linear(4, 4)), "weight", Normal(1.0), "another weight"),
    (
        "other shape",
        lambda: with_parametrization(Symmetric(), nn.Linear(4, 4)),
        "parametrizations*",
        Normal(1.0),
        "shape",
    ),
]


@pytest.mark.parametrize(
    ("build", "name", "scheme", "words"), [case[1:] for case in REFUSALS], ids=[c[0] for c in REFUSALS]
)
def test_a_refusal_comes_before_the_first_byte(build: Build, name: str, scheme: Scheme, words: str) -> None:
    model = built(build)
    plan = fanin.plan(model, recipe="he").replace(name, scheme)
    before = state(model)
    with pytest.raises(FaninError, match=words) as caught:
        fanin.apply(plan, model)
    assert_same(model, before)
    assert "write instead:" in str(caught.value)
    assert name.strip("*") in str(caught.value)


@pytest.mark.parametrize("edit", ["shape", "missing", "surplus"])
def test_a_plan_that_does_not_fit_changes_nothing(edit: str) -> None:
    model, other = (
        built(net),
        built(lambda: nn.Sequential(nn.Conv2d(3, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))),
    )
    plan = fanin.plan(other, recipe="he") if edit != "surplus" else fanin.plan(model, recipe="he")
    if edit != "missing":
        model = nn.Sequential(*list(model)[:-1])
    before = state(model)
    with pytest.raises(PlanError, match={"shape": "6×8", "missing": "no row", "surplus": "no such parameter"}[edit]):
        fanin.apply(plan, model)
    assert_same(model, before)


def test_a_common_prefix_that_explains_all_that_is_missing_is_what_to_write() -> None:
    model = built(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    wrapped = nn.ModuleDict({"model": model})
    with pytest.raises(PlanError, match=r"write instead: fanin.apply\(model.get_submodule\('model'\), plan\)"):
        fanin.apply(fanin.plan(model, recipe="he"), wrapped)
    with pytest.raises(PlanError, match=r"write instead: fanin.apply\(model, plan, prefix='model.'\)"):
        fanin.apply(fanin.plan(wrapped, recipe="he"), model)


def test_near_names_are_looked_for_where_they_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(matching, "nearest", lambda name, _known: asked.append(name) or "known: many")
    model = built(lambda: nn.Sequential(*[nn.Linear(1, 1) for _ in range(40)]))
    with pytest.raises(PlanError, match="and 140 more"):
        fanin.apply(fanin.plan(model, recipe="he"), nn.ModuleDict({"model": model}))
    assert len(asked) == matching.SHOWN


def test_blocks_that_leave_rows_out_are_refused() -> None:
    model = built(lambda: nn.Linear(4, 6))
    half = Axes(blocks=(Block("a", (range(2),)), Block("b", (range(2, 5),))))
    scheme = schemes.Packed.of(a=Zeros(), b=Normal(1.0))
    rows = [Row(ParameterNode("weight", (6, 4), Role.LINEAR, half), scheme, "")]
    rows.append(Row(ParameterNode("bias", (6,), Role.BIAS, Axes((), ())), Zeros(), ""))
    before = state(model)
    with pytest.raises(ApplyError, match="each of the 6 rows"):
        fanin.apply(Plan(tuple(rows), "test"), model)
    assert_same(model, before)


def test_inference_tensors_are_refused() -> None:
    with torch.inference_mode():
        model = built(lambda: nn.Linear(2, 2))
    with pytest.raises(ApplyError, match="inference_mode"):
        fanin.initialize(model, recipe="he")


def test_ties_are_written_once_under_the_first_name() -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict({"table": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
        model["head"].weight = model["table"].weight
        return model

    model, alone = built(tied), built(lambda: nn.ModuleDict({"table": nn.Embedding(9, 4)}))
    plan = fanin.initialize(model, recipe="he")
    fanin.initialize(alone, recipe="he")
    assert len(plan) == 1
    assert model["head"].weight is model["table"].weight
    assert torch.equal(model["head"].weight, alone["table"].weight)


@pytest.mark.parametrize("row", [0, 3, -1])
def test_padding_rows_are_zero(row: int) -> None:
    table = built(lambda: nn.Embedding(7, 5, padding_idx=row))
    fanin.initialize(table, recipe="he")
    assert (table.weight.abs().sum(1) == 0).nonzero().flatten().tolist() == [row % 7]


def test_frozen_parameters_are_written_and_stay_frozen_and_buffers_stay() -> None:
    model = built(net)
    model.requires_grad_(False)
    model[4].running_mean.fill_(2.0)
    before = state(model)
    fanin.initialize(model, recipe="he")
    assert not torch.equal(model[0].weight, before["0.weight"])
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_memory_formats_and_strides_keep_their_layout_and_change_no_value() -> None:
    plain, last = (
        built(lambda: nn.Conv2d(4, 8, 3)),
        built(lambda: nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)),
    )
    for model in (plain, last):
        fanin.initialize(model, recipe="he")
    assert last.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain.weight, last.weight)
    strided = built(lambda: nn.Linear(6, 8))
    strided.weight = nn.Parameter(torch.zeros(12, 8)[::2].T)
    dense = built(lambda: nn.Linear(6, 8))
    for model in (strided, dense):
        fanin.initialize(model, recipe="he")
    assert torch.equal(strided.weight, dense.weight)


WRAPPERS: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "DataParallel": lambda model: DataParallel(model),
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled twice": lambda model: torch.compile(DataParallel(torch.compile(model, backend="eager")), backend="eager"),
    "checkpointed part": lambda model: nn.Sequential(checkpoint_wrapper(model[0]), *list(model)[1:]),
    "compiled part": lambda model: nn.Sequential(torch.compile(model[0], backend="eager"), *list(model)[1:]),
    "parallel part": lambda model: nn.Sequential(DataParallel(model[0]), *list(model)[1:]),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_change_neither_names_nor_values(wrap: Callable[[nn.Sequential], nn.Module]) -> None:
    bare, inner = built(net), built(net)
    plan = fanin.initialize(bare, recipe="he")
    wrapped = built(lambda: wrap(inner))
    assert [row.name for row in fanin.plan(wrapped, recipe="he")] == [row.name for row in plan]
    fanin.apply(plan, wrapped)
    for one, other in zip(bare.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_child_called_module_keeps_its_name() -> None:
    model = built(lambda: nn.ModuleDict({"module": nn.Linear(2, 2)}))
    assert [row.name for row in fanin.plan(model, recipe="he")] == ["module.weight", "module.bias"]


def test_a_stage_gets_what_the_whole_model_gives_it() -> None:
    whole = built(
        lambda: nn.ModuleDict({"body": net(), "table": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    )
    whole["head"].weight = whole["table"].weight
    plan = fanin.initialize(whole, recipe="he", seed=2)
    stage = built(net)
    fanin.apply(plan, stage, seed=2, prefix="body.")
    assert_same(stage, {name.removeprefix("body."): value for name, value in whole.state_dict().items()})
    last = built(lambda: nn.ModuleDict({"out": nn.Linear(4, 9, bias=False)}))
    fanin.apply(plan, last, seed=2, names={"out.weight": "head.weight"})
    assert torch.equal(last["out"].weight, whole["table"].weight)
    twice = built(lambda: nn.ModuleList([nn.BatchNorm1d(6), nn.BatchNorm1d(6)]))
    clash = {f"{i}.{kind}": f"body.4.{kind}" for i in range(2) for kind in ("weight", "bias")}
    with pytest.raises(PlanError, match="2 parameters"):
        fanin.apply(plan, twice, names=clash)


NORMED: dict[str, tuple[Build, Build, str]] = {
    "linear": (lambda: parametrizations.weight_norm(nn.Linear(30, 20)), lambda: nn.Linear(30, 20), "weight"),
    "convolution": (lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), lambda: nn.Conv2d(4, 6, 3), "weight"),
    "one norm": (lambda: parametrizations.weight_norm(nn.Linear(9, 7), dim=None), lambda: nn.Linear(9, 7), "weight"),
    "other side": (lambda: parametrizations.weight_norm(nn.Linear(9, 7), dim=1), lambda: nn.Linear(9, 7), "weight"),
    "recurrent": (
        lambda: parametrizations.weight_norm(nn.GRU(3, 4), "weight_hh_l0"),
        lambda: nn.GRU(3, 4),
        "weight_hh_l0",
    ),
    "bfloat16": (
        lambda: parametrizations.weight_norm(nn.Linear(30, 20).bfloat16()),
        lambda: nn.Linear(30, 20).bfloat16(),
        "weight",
    ),
    "older interface": (lambda: old_weight_norm(nn.Linear(30, 20)), lambda: nn.Linear(30, 20), "weight"),
    "adapter": (adapted, lambda: nn.Linear(8, 6), "weight"),
    "trained adapter": (lambda: adapted(0.5), lambda: nn.Linear(8, 6), "weight"),
}


@pytest.mark.parametrize("recipe", ["he", "orthogonal"])
@pytest.mark.parametrize(("build", "bare", "name"), NORMED.values(), ids=NORMED)
def test_computed_weights_are_what_plain_ones_would_be(build: Build, bare: Build, name: str, recipe: str) -> None:
    """To within two units in the last place of the largest element, which the norm's division costs."""
    model, plain = built(build), built(bare)
    plan = fanin.initialize(model, recipe=recipe, seed=4)
    fanin.initialize(plain, recipe=recipe, seed=4)
    wanted = getattr(plain, name)
    difference = (getattr(model, name) - wanted).abs().max()
    assert difference <= 2 * torch.finfo(wanted.dtype).eps * wanted.abs().max()
    assert len(plan) == len(list(model.parameters()))
    assert plan.verify(model)
    assert f"as {name}, through" in plan[name].reason


def test_a_plan_fits_with_and_without_weight_normalization() -> None:
    bare, normed = built(lambda: nn.Linear(9, 7)), built(lambda: parametrizations.weight_norm(nn.Linear(9, 7)))
    for plan in (fanin.plan(bare, recipe="he"), fanin.plan(normed, recipe="he")):
        for model in (bare, normed):
            fanin.guide.zero_initialization(model)
            fanin.apply(plan, model)
        assert torch.allclose(bare.weight, normed.weight, rtol=1e-6)
        assert bare.weight.any()


def test_a_weight_of_zeros_has_norms_of_zero_and_a_direction() -> None:
    for build in (lambda: parametrizations.weight_norm(nn.Linear(5, 4)), lambda: old_weight_norm(nn.Linear(5, 4))):
        model = fanin.guide.zero_initialization(built(build))
        assert not model.weight.any()
        direction = next(value for name, value in model.named_parameters() if name.endswith(("original1", "_v")))
        assert direction.abs().min() > 0
        model(torch.ones(2, 5)).sum().backward()
        assert all(bool(torch.isfinite(value.grad).all()) for value in model.parameters() if value.grad is not None)


@pytest.mark.parametrize("kind", ["spectral_norm", "orthogonal"])
def test_what_a_parametrization_cannot_hold_is_kept_and_what_it_can_is_written(kind: str) -> None:
    model = built(lambda: getattr(parametrizations, kind)(nn.Linear(9, 7)))
    before = state(model)
    plan = fanin.initialize(model, recipe="he")
    row = plan["parametrizations.weight.original"]
    assert row.kept
    assert f"{kind} cannot hold" in row.reason
    assert_same(model, {**before, "bias": torch.zeros(7)})
    chosen = plan.replace("weight", Orthogonal())
    fanin.apply(chosen, model)
    plain = built(lambda: nn.Linear(9, 7))
    fanin.apply(fanin.plan(plain, recipe="he").replace("weight", Orthogonal()), plain)
    assert torch.allclose(model.eval().weight, plain.weight, atol=1e-6)
    assert torch.allclose(model.train().weight, plain.weight, atol=1e-6)
    assert chosen.verify(model)


def test_planning_changes_no_buffer_of_a_parametrization() -> None:
    model = built(
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 5)), nn.utils.spectral_norm(nn.Linear(5, 5)))
    )
    before = state(model)
    fanin.plan(model, recipe="orthogonal")
    assert_same(model, before)


@pytest.mark.parametrize(
    "scheme", [schemes.Sparse(5), schemes.Identity(2.0), schemes.DeltaOrthogonal(), Orthogonal(), schemes.he_normal()]
)
def test_verification_knows_the_spread_of_each_scheme(scheme: Scheme) -> None:
    model = built(lambda: nn.Conv1d(60, 50, 3))
    plan = fanin.plan(model, recipe="he").replace("weight", scheme)
    for seed in range(4):
        fanin.apply(plan, model, seed=seed)
        assert plan.verify(model), f"seed {seed}"
    with torch.no_grad():
        model.weight *= math.sqrt(2)
    assert not plan.verify(model)


def rotate_queries(model: nn.Module) -> None:
    model.in_proj_weight.copy_(model.in_proj_weight.roll(32, 0))


def move_open_gate(model: nn.Module) -> None:
    model.bias_ih_l0.copy_(model.bias_ih_l0.roll(24))


def lose_a_gate(model: nn.Module) -> None:
    model.weight_hh_l0[:24] *= 1e-6
    model.weight_hh_l0[24:] *= math.sqrt(4 / 3)


def draw_gaussian(model: nn.Module) -> None:
    model.weight.normal_(std=model.weight.std().item(), generator=torch.Generator().manual_seed(0))


def turn_one_gate_gaussian(model: nn.Module) -> None:
    gate = model.weight_hh_l0[:24]
    gate.normal_(std=gate.std().item(), generator=torch.Generator().manual_seed(0))


def fill_padding(model: nn.Module) -> None:
    model.weight[3] = 0.2


def one_percent_of_a_percent(model: nn.Module) -> None:
    model.weight.fill_(1.0001)


TAMPERED: dict[str, tuple[Build, str, Scheme | None, Callable[[nn.Module], None], str]] = {
    "queries": (
        lambda: nn.MultiheadAttention(32, 4),
        "in_proj_weight",
        schemes.Packed.of(q=Normal(2.0), k=Normal(1.0), v=Normal(1.0)),
        rotate_queries,
        "q: std .* where 2",
    ),
    "open gate": (
        lambda: nn.LSTM(16, 24),
        "bias_ih_l0",
        schemes.Packed.of(i=Zeros(), f=schemes.Ones(), g=Zeros(), o=Zeros()),
        move_open_gate,
        "f: mean 0 where 1",
    ),
    "lost gate": (lambda: nn.LSTM(16, 24), "weight_hh_l0", Normal(0.2), lose_a_gate, "i: std 1.9"),
    "gaussian": (lambda: nn.Linear(64, 48), "weight", Orthogonal(), draw_gaussian, "not orthogonal"),
    "gaussian kernel": (
        lambda: nn.Conv2d(8, 6, 3),
        "weight",
        schemes.DeltaOrthogonal(),
        draw_gaussian,
        "std|not delta",
    ),
    "gaussian half": (lambda: nn.Linear(64, 48), "weight", schemes.LooksLinear(), draw_gaussian, "not looks linear"),
    "gaussian centre": (
        lambda: nn.Linear(48, 64),
        "weight",
        schemes.CentredOrthogonal(4.0),
        draw_gaussian,
        "not centred orthogonal",
    ),
    "gaussian gate": (lambda: nn.LSTM(16, 24), "weight_hh_l0", Orthogonal(), turn_one_gate_gaussian, "i: not orthog"),
    "padding": (
        lambda: nn.Embedding(400, 16, padding_idx=3),
        "weight",
        Normal(1.0),
        fill_padding,
        "row 3 is for padding",
    ),
    "four digits": (lambda: nn.BatchNorm1d(4), "weight", None, one_percent_of_a_percent, "mean 1.0001 where 1 was"),
}


@pytest.mark.parametrize(("build", "name", "scheme", "tamper", "words"), TAMPERED.values(), ids=TAMPERED)
def test_verification_sees_what_one_number_does_not_tell(
    build: Build, name: str, scheme: Scheme | None, tamper: Callable[[nn.Module], None], words: str
) -> None:
    model = built(build)
    plan = fanin.plan(model, recipe="he")
    if scheme is not None:
        plan = plan.replace(name, scheme)
    fanin.apply(plan, model)
    assert plan.verify(model)
    with torch.no_grad():
        tamper(model)
    (check,) = plan.verify(model).problems
    assert re.search(words, check.problem), check.problem


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Linear(30, 70),
        lambda: nn.Conv2d(12, 8, 3, groups=4),
        lambda: nn.ConvTranspose2d(12, 8, 3, groups=4),
        lambda: nn.LSTM(16, 24),
        lambda: nn.MultiheadAttention(16, 2),
    ],
)
@pytest.mark.parametrize(
    "scheme", [Orthogonal(-2.0), schemes.ScaledOrthogonal(), schemes.CentredOrthogonal(3.0), schemes.LooksLinear(1.5)]
)
def test_what_was_drawn_orthogonal_is_found_so(scheme: Scheme, layer: Build, dtype: torch.dtype) -> None:
    model = built(lambda: layer().to(dtype))
    plan = fanin.plan(model, recipe="he")
    plan = plan.replace(lambda node: node.is_weight, scheme)
    fanin.apply(plan, model)
    report = plan.verify(model)
    assert report, str(report)


def test_verification_of_complex_values_and_of_large_tensors_in_pieces() -> None:
    model = Complex()
    plan = fanin.plan(model, recipe="he").replace("weight", Normal(0.5))
    fanin.apply(plan, model)
    assert plan.verify(model)
    values = torch.randn(3, 1_300_000, generator=torch.Generator().manual_seed(0)).T
    mean, std = moments(values)
    assert mean == pytest.approx(values.double().mean().item(), abs=1e-12)
    assert std == pytest.approx(values.double().std(unbiased=False).item(), rel=1e-12)


def test_schemes_that_do_not_fit_one_tensor_are_refused_by_fill() -> None:
    with pytest.raises(SchemeError, match="no matrix"):
        fanin.fill_(torch.zeros(3), Orthogonal())
