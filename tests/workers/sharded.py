"""What every process of a sharded run checks; run by torchrun (see `test_sharding`).

Each process draws its parts, then all gather the whole and compare it with what one process draws alone.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from unittest import mock

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import fanin
from fanin import drawing, schemes, sharding
from fanin.deferral import deferred
from fanin.errors import ApplyError
from fanin.fans import EMBEDDING, Axes, even_blocks
from fanin.schemes import Scheme
from fanin.sites import Site

CONV = (7, 6, 3, 3)
CASES: list[tuple[Scheme, tuple[int, ...], Axes]] = [
    (schemes.Normal(0.5), (13, 10), Axes()),
    (schemes.Uniform(-1, 1), (5, 3, 7), Axes()),
    (schemes.TruncatedNormal(1.0), (9, 130), Axes()),
    (schemes.he_normal(), CONV, Axes()),
    (schemes.Constant(3.0), (13,), Axes((), ())),
    (schemes.Orthogonal(), (13, 10), Axes()),
    (schemes.Orthogonal(), (8, 3, 6), Axes((2,), (1,), (0,))),
    (schemes.ScaledOrthogonal(2.0), (12, 5), Axes(blocks=even_blocks("qkv", 12))),
    (schemes.DeltaOrthogonal(), CONV, Axes()),
    (schemes.LooksLinear(), (9, 11), Axes()),
    (schemes.CentredOrthogonal(3.0), (9, 11), Axes()),
    (schemes.Identity(), (6, 9), Axes()),
    (schemes.Sparse(3), (9, 11), Axes()),
    (
        schemes.Packed.of(q=schemes.Normal(1.0), k=schemes.Zeros(), v=schemes.Uniform(-1, 1)),
        (12, 7),
        Axes(blocks=even_blocks("qkv", 12)),
    ),
]
EMBEDDED = (schemes.Normal(1.0), (11, 6), EMBEDDING)


def meshes(world: int) -> Iterator[DeviceMesh]:
    yield init_device_mesh("cpu", (world,))
    if world >= 2:
        yield init_device_mesh("cpu", (2, world // 2))
    if world >= 4:
        yield init_device_mesh("cpu", (2, 2, world // 4))


def placements(mesh: DeviceMesh, ndim: int) -> Iterator[tuple[Placement, ...]]:
    """All of one mesh dimension, many of two, some of three; strided ones among them."""
    choices: list[Placement] = [Replicate(), *(Shard(dim) for dim in range(ndim))]
    everything = list(itertools.product(choices, repeat=mesh.ndim))
    yield from everything if mesh.ndim < 3 else everything[:: max(len(everything) // 6, 1)]
    if mesh.ndim == 2:
        inner = mesh.shape[1]
        yield (_StridedShard(0, split_factor=max(inner, 2)), Shard(0))
        yield (_StridedShard(ndim - 1, split_factor=3), Replicate())


def empty(shape: Sequence[int], mesh: DeviceMesh, where: tuple[Placement, ...], dtype: torch.dtype) -> DTensor:
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    runs = sharding.divide(shape, where, tuple(mesh.shape), coordinate)
    held = torch.full([sum(map(len, axis)) for axis in runs], torch.nan, dtype=dtype)
    stride = torch.empty(tuple(shape)).stride()
    return DTensor.from_local(held, mesh, where, run_check=False, shape=torch.Size(shape), stride=stride)


def check_tensors(world: int) -> int:
    """Every scheme under every placement: the gathered tensor is the one that a single process draws."""
    count = 0
    dtypes = itertools.cycle([torch.float32, torch.bfloat16, torch.float64])
    for mesh in meshes(world):
        for scheme, shape, axes in [*CASES, EMBEDDED]:
            for where, dtype in zip(placements(mesh, len(shape)), dtypes, strict=False):
                site = Site(shape, axes, "some.weight", 3 if axes is EMBEDDING else None)
                alone = torch.empty(shape, dtype=dtype)
                drawing.fill_region(alone, scheme, site, seed=5)
                divided = empty(shape, mesh, where, dtype)
                drawing.fill_pieces(sharding.pieces(divided), scheme, site, seed=5)
                assert torch.equal(divided.full_tensor(), alone), (scheme, shape, tuple(mesh.shape), where)
                count += 1
    return count


def check_own_elements_only(world: int) -> int:
    """An element-wise scheme draws no more than the process holds."""
    divided = empty((64 * world, 8), init_device_mesh("cpu", (world,)), (Shard(0),), torch.float32)
    with mock.patch("fanin.drawing.sampling.fill_", wraps=drawing.sampling.fill_) as filling:
        fanin.fill_(divided, schemes.Normal(1.0))
    assert sum(call.args[0].numel() for call in filling.call_args_list) == 64 * 8
    return 1


class Block(nn.Module):
    """Two linear layers and a norm, with uneven sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(12, 22), nn.Linear(22, 12), nn.LayerNorm(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.down(torch.relu(self.up(x))))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(12, 5, bias=False)
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x))


def tensor_parallel(model: Model, mesh: DeviceMesh) -> Model:
    for block in model.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def fsdp(model: Model, mesh: DeviceMesh, **options: object) -> Model:
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def layouts(world: int) -> Iterator[tuple[str, Callable[[Model], Model]]]:
    line = init_device_mesh("cpu", (world,))
    offload = CPUOffloadPolicy(pin_memory=False)
    yield "FSDP2", lambda model: fsdp(model, line)
    yield "FSDP2 with CPU offload", lambda model: fsdp(model, line, offload_policy=offload)
    if 22 % world == 0:
        yield "tensor parallel", lambda model: tensor_parallel(model, line)
    if world >= 2:
        grid = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "model"))
        hybrid = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
        yield "HSDP", lambda model: fsdp(model, hybrid)
        yield "FSDP2 over tensor parallel", lambda model: fsdp(tensor_parallel(model, grid["model"]), grid["data"])


def check_models(world: int) -> int:
    """Each layout, from memory and from meta, ready to train, equal to one process's model; verified without talk."""
    alone = Model()
    recipes = ("he", "orthogonal")
    references = {}
    for recipe in recipes:
        fanin.initialize(alone, recipe=recipe, seed=3)
        references[recipe] = {name: value.clone() for name, value in alone.state_dict().items()}
    count = 0
    for (label, layout), recipe, meta in itertools.product(list(layouts(world)), recipes, (False, True)):
        with deferred(0 if meta else 2**30):
            model = Model()
        model = layout(model)
        plan = fanin.initialize(model, recipe=recipe, seed=3, device="cpu")
        verified = plan.verify(model)
        assert verified, f"{label}: {verified}"
        assert any("drawn whole" in row.reason for row in plan) == (recipe == "orthogonal")
        for name, value in model.state_dict().items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            assert torch.equal(whole, references[recipe][name]), (label, recipe, meta, name)
        model(torch.ones(4, 12)).sum().backward()
        gathered = fanin.initialize(model, recipe=recipe, seed=3)
        assert gathered == plan
        count += 1
    return count


def check_refusals(world: int) -> int:
    """A pending sum is refused, and nothing is written."""
    mesh = init_device_mesh("cpu", (world,))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = model[0].weight.clone()
    pending = DTensor.from_local(torch.ones(4, 4), mesh, (Partial(),), run_check=False)
    model[1].weight = nn.Parameter(pending)
    with pytest.raises(ApplyError, match=r"(?s)1\.weight.*Partial"):
        fanin.initialize(model, recipe="he")
    assert torch.equal(model[0].weight, before)
    return 1


def main() -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module="torch")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    world = distributed.get_world_size()
    torch.manual_seed(distributed.get_rank())
    checks = (check_tensors, check_own_elements_only, check_models, check_refusals)
    counts = {check.__name__: check(world) for check in checks}
    if distributed.get_rank() == 0:
        print(f"all equal: {counts}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
