"""How long it takes, and how much memory, until a Llama of a billion parameters is ready to train.

Two ways, each in a process of its own, in turns: ``LlamaForCausalLM(config)``, whose constructor fills every weight,
and ``fanin.deferred()`` with `fanin.initialize`. Run

    python benchmarks/llama.py [rounds]

which writes `docs/benchmarks/llama.json`: medians, their ratio, and the peak of memory over the weights' size. The way
``memory alone`` writes zeros into as much fresh memory, which is the limit.

Each is timed twice: on memory that the machine has used a moment ago, and on memory as it comes. On a virtual machine
memory that nothing has used for a while has gone back to the host, and fetching it takes longer than anything else.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

STORE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "llama.json"
CONFIG = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}
WAYS = ("transformers", "fanin", "fanin, module types", "memory alone")
MEMORY = ("used a moment ago", "as it comes")
TOUCHED = 5 * 2**30
"""Bytes that are written and given back before the clock starts, so that the system has them at hand."""


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def touch() -> None:
    """Use memory and give it back, twice: the second time the system takes what it had the first time."""
    for _ in range(2):
        with mmap.mmap(-1, TOUCHED, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
            for at in range(0, TOUCHED, mmap.PAGESIZE):
                memory[at] = 1


def measure(way: str, memory: str) -> dict[str, float]:
    """Build one model, here, and say how long it took and what it held beyond what importing had."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import fanin

    config = LlamaConfig(**CONFIG)
    small = torch.nn.Linear(64, 64)
    fanin.initialize(small, torch.ones(2, 64), recipe="auto")
    if memory == MEMORY[0]:
        touch()
    before, processor_before = peak(), time.process_time()
    start = time.perf_counter()
    if way == "transformers":
        model = LlamaForCausalLM(config)
    elif way == "memory alone":
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        for module in model.modules():
            for name, value in module._parameters.items():
                if value is not None and value.is_meta:
                    module._parameters[name] = torch.nn.Parameter(torch.empty(value.shape).zero_())
    else:
        with fanin.deferred():
            model = LlamaForCausalLM(config)
        decided = time.perf_counter()
        ids = {"input_ids": torch.zeros(1, 8, dtype=torch.long)} if way == "fanin" else None
        plan = fanin.plan(model, ids, recipe="auto" if way == "fanin" else "he")
        planned = time.perf_counter()
        fanin.apply(plan, model, seed=0, device="cpu")
    seconds = time.perf_counter() - start
    held = peak() - before
    weights = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    spent = time.process_time() - processor_before
    found = {"seconds": seconds, "processor_seconds": spent, "peak_bytes": held, "weight_bytes": weights}
    if way.startswith("fanin"):
        assert not any(parameter.is_meta for parameter in model.parameters())
        assert plan.verify(model)
        found |= {"build": decided - start, "plan": planned - decided, "write": start + seconds - planned}
    return found


def processor() -> str:
    """The processor's name, where the system tells it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(rounds: int) -> None:
    import torch

    runs: dict[str, dict[str, list[dict[str, float]]]] = {memory: {way: [] for way in WAYS} for memory in MEMORY}
    for turn in range(rounds):
        for memory in MEMORY:
            for way in WAYS:
                command = [sys.executable, __file__, "--measure", way, memory]
                run = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[memory][way].append(json.loads(run.stdout.splitlines()[-1]))
                seconds = runs[memory][way][-1]["seconds"]
                print(f"round {turn + 1}, memory {memory}, {way}: {seconds:.2f} s", flush=True)
    record = {
        "date": date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "config": CONFIG,
        "rounds": rounds,
        "memory": {memory: summary(found) for memory, found in runs.items()},
    }
    STORE.parent.mkdir(parents=True, exist_ok=True)
    STORE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Each way's medians, and how many times sooner than the constructor it is ready."""
    medians = {
        way: {key: statistics.median(run[key] for run in found) for key in found[0]} for way, found in runs.items()
    }
    for found in medians.values():
        found["peak_over_weights"] = found["peak_bytes"] / found["weight_bytes"]
    ratios = {way: medians["transformers"]["seconds"] / medians[way]["seconds"] for way in WAYS[1:]}
    print(", ".join(f"{way}: {ratio:.1f} times faster" for way, ratio in ratios.items()))
    return {"medians": medians, "times_faster": ratios}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(*sys.argv[2:4])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
