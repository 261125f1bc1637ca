"""Shards are slices of the whole, on any mesh, and a process that dies takes nobody's time with it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from fanin.sharding import divide, pieces

WORKERS = Path(__file__).parent / "workers"
PACKAGE = Path(__file__).parent.parent / "src"


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Placement], tuple[int, ...]]:
    """A shape, and a placement for each dimension of a mesh."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    mesh = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    dims = st.integers(0, len(shape) - 1)
    strided = st.builds(lambda dim, factor: _StridedShard(dim, split_factor=factor), dims, st.integers(2, 4))
    where = [draw(st.one_of(st.just(Replicate()), st.builds(Shard, dims), strided)) for _ in mesh]
    return shape, where, mesh


@settings(max_examples=150, deadline=None)
@given(layouts())
def test_indices_are_those_that_torch_gives_each_process(
    layout: tuple[tuple[int, ...], list[Placement], tuple[int, ...]],
) -> None:
    """Torch's own splitting of a tensor of flat indices, placement by placement, is the oracle."""
    shape, where, mesh = layout
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    for coordinate in itertools.product(*map(range, mesh)):
        held = whole
        for placement, size, place in zip(where, mesh, coordinate, strict=True):
            if not isinstance(placement, Replicate):
                held = placement._split_tensor(held, size, with_padding=False, contiguous=True)[0][place]
        mine = whole
        for axis, runs in enumerate(divide(shape, where, mesh, coordinate)):
            mine = mine.index_select(axis, torch.tensor([index for run in runs for index in run], dtype=torch.long))
        assert mine.flatten().tolist() == held.flatten().tolist()


def test_a_whole_tensor_is_one_piece_that_shares_its_memory() -> None:
    tensor = torch.zeros(3, 4)
    ((piece, offset),) = pieces(tensor)
    piece.fill_(1.0)
    assert offset == (0, 0)
    assert tensor.all()


@pytest.mark.parametrize("world", [2, 4])
def test_every_scheme_layout_and_model_on_several_processes(world: int) -> None:
    """See `workers/sharded.py` for what is checked; the benchmark runs it with 1 and 8 processes too."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    run = subprocess.run(
        [*command, str(WORKERS / "sharded.py")], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert "all equal" in run.stdout


def test_survivors_of_a_killed_process_fail_and_do_not_hang(tmp_path: Path) -> None:
    """Writing talks to nobody, so it ends; the first exchange after it says that a peer is gone."""
    world = 3
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKERS / "killed.py"), str(tmp_path / "store"), str(rank), str(world)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert started[1].returncode == -signal.SIGKILL
    for rank in (0, 2):
        out, error = ended[rank]
        assert out == "written\n", error
        assert started[rank].returncode == 1
        assert "RuntimeError" in error
        assert "onnection" in error or "imed out" in error, error
