"""What each process of a sharded run pays to write its part: time, and memory beyond what importing had.

A stack of linear layers is built by ``fanin.deferred()``, sharded by FSDP2 on the meta device, and written, on 1, 2, 4
and 8 processes that share this machine. Processor time is what a process would need with a core of its own. An
element-wise scheme costs a process its own elements; orthogonal matrices are drawn whole by each. Run

    python benchmarks/sharding.py

which first runs the checks of `tests/workers/sharded.py` on as many processes, then writes
`docs/benchmarks/sharding.json`.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "docs" / "benchmarks" / "sharding.json"
WORLDS = (1, 2, 4, 8)
LAYERS = 12
WIDTHS = {"he": 4096, "orthogonal": 2048}


def usage() -> tuple[float, int]:
    """Processor seconds and the peak of memory in bytes, of this process so far."""
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime + found.ru_stime, found.ru_maxrss * 1024


def measure(recipe: str) -> None:
    """Write one process's part, and print what it took as a line of JSON."""
    import torch
    from torch import distributed, nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    import fanin

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    warm = fully_shard(nn.Sequential(nn.Linear(64, 64)), mesh=mesh)
    fanin.initialize(warm, recipe=recipe)
    with fanin.deferred():
        width = WIDTHS[recipe]
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    plan = fanin.plan(fully_shard(model, mesh=mesh), recipe=recipe)
    distributed.barrier()
    before, start = usage(), time.perf_counter()
    fanin.apply(plan, model, device="cpu")
    seconds, after = time.perf_counter() - start, usage()
    held = sum(value.to_local().numel() * value.to_local().itemsize for value in model.parameters())
    record = {"seconds": seconds, "processor_seconds": after[0] - before[0]}
    print(json.dumps({**record, "peak_bytes": after[1] - before[1], "own_bytes": held}), flush=True)
    distributed.barrier()
    distributed.destroy_process_group()


def launch(world: int, *command: str) -> list[str]:
    """The lines that all processes print."""
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*runner, *command], capture_output=True, text=True, env=environment, check=True)
    return run.stdout.splitlines()


def worst(lines: list[str]) -> dict[str, float]:
    """The largest of each figure over the processes."""
    ranks = [json.loads(line) for line in lines if line.startswith("{")]
    return {key: max(rank[key] for rank in ranks) for key in ranks[0]}


def processor() -> str:
    """The processor's name, where the system tells it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    import torch

    results: dict[str, Any] = {}
    for world in WORLDS:
        (checked,) = [line for line in launch(world, str(ROOT / "tests/workers/sharded.py")) if "all equal" in line]
        results[str(world)] = {"checks": checked.removeprefix("all equal: ")}
        for recipe in WIDTHS:
            found = worst(launch(world, __file__, "--measure", recipe))
            results[str(world)][recipe] = found
            memory = f"{found['peak_bytes'] / 2**20:.0f} MB beside {found['own_bytes'] / 2**20:.0f} MB of its own"
            print(f"{world} processes, {recipe}: {found['processor_seconds']:.2f} s each, {memory}", flush=True)
    record = {
        "date": date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} processors",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "model": f"{LAYERS} linear layers of {WIDTHS} rows and columns, FSDP2, float32, one thread a process",
        "figures": "the largest over the processes",
        "processes": results,
    }
    STORE.parent.mkdir(parents=True, exist_ok=True)
    STORE.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2])
    else:
        main()
