"""A process of a sharded run in which one is killed half-way through writing; run by `test_sharding`."""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from unittest import mock

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fanin
from fanin import applying

VICTIM = 1


def main(store: str, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=30)
    )
    model = fully_shard(nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))), mesh=init_device_mesh("cpu", (world,)))
    written = 0
    fill_pieces = applying.fill_pieces

    def fill_until_killed(*args: object, **options: object) -> None:
        nonlocal written
        written += 1
        if rank == VICTIM and written == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        fill_pieces(*args, **options)

    with mock.patch.object(applying, "fill_pieces", fill_until_killed):
        fanin.initialize(model, recipe="he")
    print("written", flush=True)
    model(torch.ones(2, 8))
    print("went on without the victim", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
