"""How fast values are drawn, against torch's own initialisers and against a memset of the same bytes.

    python benchmarks/sampling.py                # the table, stored in docs/benchmarks/sampling.json
    python benchmarks/sampling.py --tails        # also a billion draws, to count what lies beyond 4σ and 5σ

Every figure is the median of several runs; the contestants take turns, so that a busy machine slows all of them. Before
each run there is a pause, for torch's idle threads spin for a while and would take a core from whoever comes next, and
then a run that does not count: a model's tensors follow one another, and a virtual machine's processors that have
fallen asleep would serve only the later ones. Rounds during which other processes used the machine are repeated, for
ten minutes at most.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fanin.sampling import Normal, TruncatedNormal, Uniform, fill_, key, orthogonal_rows

ELEMENTS = 2**24
PAUSE = 0.05
STORE = Path(__file__).parent.parent / "docs" / "benchmarks" / "sampling.json"
KEY = key(0, "benchmark")

Row = dict[str, Any]


def race(runs: int, *contestants: Callable[[], object]) -> list[list[float]]:
    """Time contestants in turns; return each one's milliseconds by round."""
    times: list[list[float]] = [[] for _ in contestants]
    while len(times[0]) < runs:
        before, round_begin = others_seconds(), time.perf_counter()
        taken = [timed(contestant) for contestant in contestants]
        others = (others_seconds() - before) / (time.perf_counter() - round_begin)
        if others < DISTURBED or PATIENCE.spent():
            disturbances.append(others)
            for one, milliseconds in zip(times, taken, strict=True):
                one.append(milliseconds)
    return times


def timed(contestant: Callable[[], object]) -> float:
    time.sleep(PAUSE)
    contestant()
    begin = time.perf_counter()
    contestant()
    return (time.perf_counter() - begin) * 1e3


def others_seconds() -> float:
    """Return the processor time that other processes have used so far; 0 where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system = (int(ticks) for ticks in stat.read_text().split(maxsplit=4)[1:4])
    mine = os.times()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - sum(mine[:4])


class Patience:
    """How long, in all, rounds that other processes disturbed are repeated before they are counted after all."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def spent(self) -> bool:
        return time.monotonic() > self.end


DISTURBED = 0.15
"""Processors that others use on average during a round from which on it is repeated."""
PATIENCE = Patience(600)
disturbances: list[float] = []


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median over the rounds of how many times longer one took than the other."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 2)


def elementwise(threads: int, runs: int) -> list[Row]:
    """Fill 16 M elements by each law."""
    torch.set_num_threads(threads)
    single, narrow = torch.empty(ELEMENTS), torch.empty(ELEMENTS, dtype=torch.bfloat16)
    init = torch.nn.init
    truncated = TruncatedNormal(0.0, 1.0, -2.0, 2.0)
    cases = [
        ("uniform", single, Uniform(-1.0, 1.0), lambda: init.uniform_(single, -1.0, 1.0), (4.0, 8.0)),
        ("normal", single, Normal(0.0, 1.0), lambda: init.normal_(single), (2.0, 4.5)),
        ("truncated ±2σ", single, truncated, lambda: init.trunc_normal_(single, std=1.0, a=-2.0, b=2.0), (12.0, 25.0)),
        ("normal, bfloat16", narrow, Normal(0.0, 1.0), lambda: init.normal_(narrow), (None, 4.0)),
    ]
    rows = []
    for name, tensor, law, theirs, goals in cases:
        ours, torchs, memset = race(runs, lambda t=tensor, w=law: fill_(t, w, KEY), theirs, tensor.zero_)
        rows.append(row(name, f"{ELEMENTS // 2**20} M", threads, ours, torchs, memset, goals[min(threads, 2) - 1]))
    return rows


def orthogonal(threads: int, runs: int) -> list[Row]:
    """Draw square orthogonal matrices."""
    torch.set_num_threads(threads)
    rows = []
    for size in (512, 1024, 2048, 4096):
        tensor = torch.empty(size, size)
        ours, theirs, memset = race(
            max(3, runs * 512 // size),
            lambda n=size: orthogonal_rows(n, n, KEY),
            lambda t=tensor: torch.nn.init.orthogonal_(t),
            tensor.zero_,
        )
        found = row("orthogonal", f"{size}×{size}", threads, ours, theirs, memset, 2.0 if threads > 1 else None)
        q = orthogonal_rows(size, size, KEY)
        found["error"] = (q.double() @ q.double().T - torch.eye(size)).abs().max().item()
        rows.append(found)
    return rows


def row(
    name: str, size: str, threads: int, ours: list[float], theirs: list[float], memset: list[float], goal: float | None
) -> Row:
    return {
        "law": name,
        "size": size,
        "threads": threads,
        "fanin_ms": round(statistics.median(ours), 2),
        "torch_ms": round(statistics.median(theirs), 2),
        "memset_ms": round(statistics.median(memset), 2),
        "times_faster": ratio(theirs, ours),
        "goal": goal,
        "times_memset": ratio(ours, memset),
    }


def column_shards(runs: int) -> list[Row]:
    """Draw as many elements in column shards as in the whole; what an element costs there, relative to here."""
    torch.set_num_threads(1)
    law, rows = Normal(0.0, 1.0), []
    whole = torch.empty(4096, 4096)
    for width in (2048, 512, 128, 32):
        shard = torch.empty(4096, width)

        def draw(shard: torch.Tensor = shard, times: int = 4096 // width) -> None:
            for _ in range(times):
                fill_(shard, law, KEY, global_shape=(4096, 4096), offset=(0, 7))

        shards, wholes = race(runs, draw, lambda: fill_(whole, law, KEY))
        rows.append({"width": width, "of": 4096, "relative_cost": ratio(shards, wholes)})
    return rows


def first_use() -> Row:
    """Seconds that the first fill of a process takes, with an empty cache of kernels and with a full one."""
    script = (
        "import time, torch, fanin.sampling as s\n"
        "t = time.perf_counter(); s.fill_(torch.empty(9), s.Normal(0.0, 1.0), 1); print(time.perf_counter() - t)"
    )
    with tempfile.TemporaryDirectory() as cache:
        run = [sys.executable, "-c", script]
        seconds = [
            float(
                subprocess.run(run, env=os.environ | {"NUMBA_CACHE_DIR": cache}, capture_output=True, check=True).stdout
            )
            for _ in range(2)
        ]
    return {"compiling": round(seconds[0], 2), "cached": round(seconds[1], 2)}


def tails(draws: int = 10**9, piece: int = 2**24) -> list[Row]:
    """Count what lies beyond 4σ and 5σ in a billion normal and truncated normal values."""
    rows = []
    for name, law in (
        ("normal", Normal(0.0, 1.0)),
        ("truncated at ±9σ", TruncatedNormal(0.0, 1.0, -9.0, 9.0)),
    ):
        counts = dict.fromkeys((4.0, 5.0), 0)
        for begin in range(0, draws, piece):
            size = min(piece, draws - begin)
            values = fill_(torch.empty(size), law, KEY, global_shape=(draws,), offset=(begin,)).abs_()
            for bound in counts:
                counts[bound] += int((values > bound).sum())
        for bound, count in counts.items():
            expected = draws * math.erfc(bound / math.sqrt(2))
            rows.append(
                {
                    "law": name,
                    "draws": draws,
                    "beyond": bound,
                    "count": count,
                    "expected": round(expected, 1),
                    "standard_errors": round((count - expected) / math.sqrt(expected), 2),
                }
            )
    return rows


def show(title: str, rows: list[Row]) -> None:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if isinstance(rows[0][name], str) else "right")
    for found in rows:
        table.add_row(*("" if value is None else f"{value:.1e}" if name == "error" else str(value)
                        for name, value in found.items()))  # fmt: skip
    Console(width=120).print(table)


def machine() -> Row:
    """Where and with what this was measured."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tails", action="store_true", help="count a billion draws (a minute)")
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    stored = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}
    stored |= {"machine": machine(), "first_use_seconds": first_use()}
    stored["elementwise"] = [*elementwise(2, arguments.runs), *elementwise(1, arguments.runs)]
    show(f"filling {ELEMENTS // 2**20} M elements, milliseconds", stored["elementwise"])
    stored["orthogonal"] = orthogonal(2, arguments.runs)
    show("orthogonal matrices, milliseconds", stored["orthogonal"])
    stored["column_shards"] = column_shards(arguments.runs)
    show("column shards: the cost of an element, relative to the whole tensor's", stored["column_shards"])
    stored["machine"]["others_used_processors"] = round(statistics.median(disturbances), 2)
    if arguments.tails:
        stored["tails"] = tails()
        show("tails", stored["tails"])
    Console(width=120).print(stored["machine"], "first use, seconds:", stored["first_use_seconds"])
    STORE.parent.mkdir(parents=True, exist_ok=True)
    STORE.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
