"""Write the tables of docs/speed.md from what sampling.py, llama.py and sharding.py stored.

python benchmarks/speed.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pages import put

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "speed.md"


def stored(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((DOCS / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    return record


def table(head: str, rows: list[list[str]]) -> str:
    columns = head.count("|") + 1
    lines = [f"| {head} |", "|" + "---|" * columns, *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def fills(record: dict[str, Any]) -> str:
    rows = []
    for row in (*record["elementwise"], *record["orthogonal"]):
        goal = f"{row['goal']:g}" if row["goal"] else "–"
        rows.append([row["law"], row["size"], str(row["threads"]), f"{row['fanin_ms']:.1f}"])
        rows[-1] += [f"{row['torch_ms']:.1f}", f"**{row['times_faster']:.1f}**", goal, f"{row['times_memset']:.1f}"]
    return table("law | size | threads | fanin ms | torch ms | times faster | goal | times a memset", rows)


def starts(record: dict[str, Any]) -> str:
    used, fresh = record["memory"].values()
    rows = []
    for name, found in fresh["medians"].items():
        row = [name]
        for measured in (used, fresh):
            times = measured["times_faster"].get(name)
            row += [f"{measured['medians'][name]['seconds']:.1f}", f"**{times:.1f}**" if times else ""]
        rows.append([*row, f"{found['peak_over_weights']:.3f}"])
    heads = [f"memory {memory}: s | times faster" for memory in record["memory"]]
    return table(f"who | {' | '.join(heads)} | peak memory over weights", rows)


def ranks(record: dict[str, Any]) -> str:
    rows = []
    for processes, found in record["processes"].items():
        he, orthogonal = found["he"], found["orthogonal"]
        rows.append([processes, f"{he['processor_seconds']:.2f}", f"{he['peak_bytes'] / 1e6:.0f}"])
        rows[-1] += [f"{orthogonal['processor_seconds']:.2f}", f"{orthogonal['peak_bytes'] / 1e6:.0f}"]
    head = "processes | he: processor s a rank | he: peak MB a rank | orthogonal: processor s a rank"
    return table(f"{head} | orthogonal: peak MB a rank", rows)


def main() -> None:
    sampling, llama, sharding = stored("sampling"), stored("llama"), stored("sharding")
    machine = sampling["machine"]
    parts = (
        f"## One tensor\n\n{machine['processor']}, {machine['cores']} cores, torch {machine['torch']},"
        f" {machine['date']}. First use compiles for {sampling['first_use_seconds']['compiling']:g} s once,"
        f" then loads in {sampling['first_use_seconds']['cached']:g} s.\n\n{fills(sampling)}",
        f"## A Llama of a billion parameters, ready to train\n\n{llama['machine']}, {llama['date']},"
        f" medians of {llama['rounds']} rounds.\n\n{starts(llama)}",
        f"## Sharded\n\n{sharding['model']}; {sharding['machine']}, {sharding['date']}.\n\n{ranks(sharding)}",
    )
    text = "\n".join(parts)
    put(PAGE, "tables", f"\n{text}")
    print(text)


if __name__ == "__main__":
    main()
