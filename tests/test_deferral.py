"""Models built without memory for their large weights: what stays real, what is filled, and what is refused."""

from __future__ import annotations

import mmap
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fanin
from fanin import memory
from fanin.deferral import LARGE, deferred
from fanin.errors import ApplyError
from fanin.schemes import Normal

pytestmark = pytest.mark.usefixtures("untouched_random_state")


class StateSpace(nn.Module):
    """Weights without values, and everything that must keep the values that a constructor computes."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 32)
        nn.init.trunc_normal_(self.project.weight, std=0.02)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, 17.0).repeat(32, 1)))
        steps = torch.empty(32)
        steps[:] = torch.linspace(0.001, 0.1, 32)
        self.steps = nn.Parameter(steps)
        self.assigned = nn.Parameter(torch.empty(4, 4))
        self.assigned.data = torch.ones(4, 4)
        self.norm = nn.BatchNorm1d(32)
        self.register_buffer("inv_freq", 1.0 / 10_000.0 ** (torch.arange(0, 8, 2) / 8))
        self.register_buffer("scratch", torch.empty(3).fill_(7.0))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8, padding_idx=2)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.table.weight
        shared = nn.Parameter(torch.randn(3, 3))
        shared.note = "kept"
        self.one, self.two = shared, shared


def sequence() -> nn.Module:
    convolution = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    return nn.Sequential(convolution, nn.LSTM(8, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 8).bfloat16())


def built(build: Callable[[], nn.Module], **options: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if not options:
            return build()
        with deferred(**options):
            return build()


@pytest.mark.parametrize("build", [StateSpace, Tied, sequence])
def test_a_deferred_model_ends_as_an_ordinary_one(build: Callable[[], nn.Module]) -> None:
    ordinary, later = built(build), built(build, larger_than=0)
    assert any(parameter.is_meta for parameter in later.parameters())
    plan = fanin.plan(ordinary, recipe="he")
    kept = [row.name for row in plan if row.kept]
    deferred_too = [name for name, value in later.named_parameters() if value.is_meta and name in kept]
    plan = plan.replace(deferred_too, Normal(0.1)) if deferred_too else plan
    fanin.apply(plan, ordinary, seed=1)
    fanin.apply(plan, later, seed=1, device="cpu")
    for (name, one), other in zip(ordinary.state_dict().items(), later.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
        assert one.stride() == other.stride(), name
        assert one.dtype == other.dtype, name
    assert [value.requires_grad for value in later.parameters()] == [v.requires_grad for v in ordinary.parameters()]


def test_what_constructors_compute_is_real() -> None:
    model = built(StateSpace, larger_than=0)
    meta = {name for name, value in model.named_parameters() if value.is_meta}
    assert meta == {"project.weight", "project.bias", "norm.weight", "norm.bias"}
    assert model.assigned.sum() == 16
    assert model.A_log[0, 1] == torch.log(torch.tensor(2.0))
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_small_parameters_are_real() -> None:
    model = built(lambda: nn.Linear(LARGE // 64, 65), larger_than=LARGE)
    assert model.weight.is_meta
    assert not model.bias.is_meta


def test_ties_and_attributes_and_identity_survive() -> None:
    model = built(Tied, larger_than=0)
    reference = model.table.weight
    assert reference.is_meta
    assert model.head.weight is reference
    assert model.one is model.two
    fanin.apply(fanin.plan(model, recipe="he").replace("one", Normal(1.0)), model, device="cpu")
    assert model.table.weight is reference
    assert model.head.weight is reference
    assert model.one is model.two
    assert model.one.note == "kept"
    assert not reference[2].any()
    model.head(model.table(torch.tensor([1]))).sum().backward()


def test_parameters_that_something_watches_are_replaced_wherever_they_are() -> None:
    model = built(Tied, larger_than=0)
    watch = weakref.ref(model.table.weight)
    fanin.apply(fanin.plan(model, recipe="he").replace("one", Normal(1.0)), model, device="cpu")
    assert watch() is not model.table.weight
    assert not model.table.weight.is_meta
    assert model.head.weight is model.table.weight


def test_weight_norm_of_a_deferred_layer() -> None:
    later = built(lambda: parametrizations.weight_norm(nn.Linear(9, 7)), larger_than=0)
    assert later.parametrizations.weight.original0.is_meta
    fanin.initialize(later, recipe="he", device="cpu")
    plain = built(lambda: nn.Linear(9, 7))
    fanin.initialize(plain, recipe="he")
    assert torch.allclose(later.weight, plain.weight, rtol=1e-6)


class Unknown(nn.Module):
    """A parameter that no recipe understands, without values."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.mystery = nn.Parameter(torch.empty(4, 4, 4))


def test_a_kept_parameter_on_meta_is_refused_with_what_to_write() -> None:
    model = built(Unknown, larger_than=20)
    assert not model.first.weight.is_meta
    before = model.first.weight.clone()
    with pytest.raises(ApplyError, match="nothing to keep") as caught:
        fanin.initialize(model, recipe="he", device="cpu")
    assert "plan.replace('mystery'" in str(caught.value)
    assert torch.equal(model.first.weight, before)
    assert model.mystery.is_meta


def test_a_device_is_needed() -> None:
    model = built(lambda: nn.Linear(4, 4), larger_than=0)
    with pytest.raises(ApplyError, match='device="cpu"'):
        fanin.initialize(model, recipe="he")
    with pytest.raises(ApplyError, match='device="cpu"'):
        fanin.initialize(model, recipe="he", device="meta")


def test_buffers_on_meta_are_named_and_deferred_is_recommended() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(ApplyError, match=r"1\.running_mean.*1\.running_var.*(?s:.*)fanin\.deferred\(\)"):
        fanin.initialize(model, recipe="he", device="cpu")
    assert model[0].weight.is_meta
    with torch.device("meta"):
        bare = nn.Linear(4, 4)
    fanin.initialize(bare, recipe="he", device="cpu")
    assert bare.weight.any()


def test_a_normalized_weight_that_was_deferred_is_told_apart() -> None:
    model = built(lambda: parametrizations.spectral_norm(nn.Linear(16, 16)), larger_than=0)
    with pytest.raises(ApplyError, match=r"spectral normalization(?s:.*)larger_than="):
        fanin.initialize(model, recipe="he", device="cpu")


def test_nothing_is_left_behind() -> None:
    with pytest.raises(ZeroDivisionError), deferred(0):
        1 / 0
    assert not built(lambda: nn.Linear(4, 4)).weight.is_meta


def test_default_devices_do_not_reach_the_drawing() -> None:
    model = built(lambda: nn.Linear(6, 4), larger_than=0)
    plain = built(lambda: nn.Linear(6, 4))
    fanin.initialize(plain, recipe="orthogonal")
    with torch.device("meta"):
        fanin.initialize(model, recipe="orthogonal", device="cpu")
    assert torch.equal(model.weight, plain.weight)


PEAK = """
import resource, sys, torch, fanin
from torch import nn
from fanin.deferral import deferred
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
warm = nn.Linear(8, 8)
fanin.initialize(warm, recipe="he")
start = peak()
with deferred():
    model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(int(sys.argv[1]))))
fanin.initialize(model, recipe="he", device="cpu")
print(peak() - start, sum(p.numel() for p in model.parameters()) * 4)
"""


def test_memory_grows_by_the_weights_and_little_else() -> None:
    """Two sizes, so that what the library itself needs once does not count."""
    grown = []
    for layers in (8, 24):
        environment = {"PYTHONPATH": str(Path(fanin.__file__).parents[1]), "PATH": "", "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-c", PEAK, str(layers)], capture_output=True, text=True, check=True, env=environment
        )
        grown.append([int(word) for word in run.stdout.split()])
    (small, small_weights), (large, large_weights) = grown
    assert large - small <= 1.1 * (large_weights - small_weights)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no large pages on this system")
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell how memory is backed")
@pytest.mark.parametrize(("patience", "expected"), [(60.0, ["hg", "hg"]), (0.0, ["nh", ""])])
def test_large_weights_ask_for_large_pages_until_one_comes_late(
    patience: float, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SLOW", patience)
    monkeypatch.setattr(memory, "REST", 1e9)
    monkeypatch.setattr(memory, "_asked_again_at", 0.0)
    size = 64 * 2**20 // 4  # larger than what malloc takes from the heap
    model = built(lambda: nn.Sequential(nn.Linear(size // 1024, 1024), nn.Linear(size // 1024, 1024)), larger_than=0)
    fanin.initialize(model, recipe="he", device="cpu")
    assert [advice(layer.weight) for layer in model] == expected


def advice(weight: torch.Tensor) -> str:
    """What /proc/self/smaps says of the pages in the middle of a tensor: ``hg`` for large ones, ``nh`` for none."""
    address, inside = weight.data_ptr() + weight.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return next((flag for flag in ("hg", "nh") if flag in line.split()), "")
    raise AssertionError(f"no mapping holds {address:#x}")
