"""The sweep: trace every model of timm, torchvision and transformers, and say how many, how fast, and why not.

Models are built on the meta device, from their architectures alone; nothing is downloaded. Run

    python benchmarks/tracing.py timm torchvision transformers expectations llama

which adds to `docs/benchmarks/tracing.json` model by model (so that it can be stopped and continued), and prints the
tables of `docs/tracing.md`; ``--write`` puts them there, ``--fresh`` begins anew, ``--every 10`` takes a sample.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn

from configurations import shrunk
from fanin.graph import Graph
from fanin.models import torchvision_model
from fanin.tracing import trace
from pages import put

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "docs" / "benchmarks" / "tracing.json"
PAGE = ROOT / "docs" / "tracing.md"

_LAYERS = (
    "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers "
    "num_blocks depth"
)
_SECTIONS = ("text_config", "vision_config", "audio_config", "encoder", "decoder", "speech_config", "qformer_config")

LARGEST = 9 << 30

Build = Callable[[], nn.Module]
Builds = tuple[Build, ...]
"""Ways to build one architecture; the first that can be traced counts."""

Row = dict[str, Any]


def timm_models() -> Iterator[tuple[str, Builds]]:
    """Every architecture of timm, without the pretrained variants of one."""
    import timm

    for name in timm.list_models():
        yield name, (lambda name=name: timm.create_model(name),)


def torchvision_models() -> Iterator[tuple[str, Builds]]:
    """Every model of torchvision; quantised ones, which have no parameters to start, are left out."""
    import torchvision

    for name in torchvision.models.list_models():
        if not name.startswith("quantized"):
            yield name, (lambda name=name: torchvision_model(name),)


def transformers_models() -> Iterator[tuple[str, Builds]]:
    """Every base model of transformers: its default configuration cut to two layers; made narrow; whole."""
    from transformers import MODEL_MAPPING

    for configuration in MODEL_MAPPING:
        yield (
            configuration.model_type,
            tuple(partial(_built, configuration, change) for change in (_cut, shrunk, lambda whole: whole)),
        )


def _built(kind: Callable[[], Any], change: Callable[[Any], Any]) -> nn.Module:
    from transformers import AutoModel

    model: nn.Module = AutoModel.from_config(change(kind()))
    return model


def _cut(configuration: Any) -> Any:
    for section in (configuration, *(getattr(configuration, name, None) for name in _SECTIONS)):
        if section is None or isinstance(section, dict):
            continue
        for name in _LAYERS.split():
            if isinstance(getattr(section, name, None), int):
                setattr(section, name, 2)
        types = getattr(section, "layer_types", None)
        if isinstance(types, list):
            section.layer_types = types[:2]
    return configuration


SOURCES = {"timm": timm_models, "torchvision": torchvision_models, "transformers": transformers_models}
KNOWN = [*SOURCES, "expectations", "llama"]


def best(builds: Builds) -> Row:
    """The row of the first way of building that leads to a traced run, or of the last.

    On the meta device first. Some cannot be built there, and some compute sizes from buffers, which have no numbers
    there; those are built on the CPU.
    """
    row: Row = {}
    for device in ("meta", "cpu"):
        for build in builds:
            row = measured(build, device)
            if _traced(row):
                return row
    return row


def measured(build: Build, device: str) -> Row:
    """One model: built and traced; the seconds are of one CPU."""
    try:
        with torch.device(device):
            model = build().eval()
    except Exception as error:  # an architecture that cannot be built has nothing to trace
        return {"unbuilt": f"{type(error).__name__}: {str(error)[:80]}"}
    start = time.process_time()
    graph = trace(model)
    seconds = time.process_time() - start
    return {**described(graph), "seconds": round(seconds, 3)}


def described(graph: Graph) -> Row:
    """What is counted of one graph."""
    weights = [node for node in graph if node.is_weight and node.exercised]
    return {
        "source": graph.source,
        "parameters": len(graph),
        "idle": sum(not node.exercised for node in graph) if graph.source != "modules" else len(graph),
        "other": sum(node.role == "other" for node in graph),
        "unknown": sum(node.activation is None and not node.axes.blocks for node in weights),
        "unexplained": sum(not node.evidence for node in graph) if graph.source != "modules" else 0,
        "notes": [note[:160] for note in graph.notes],
    }


def scored() -> dict[str, Row]:
    """Every hand-written expectation against a fresh trace."""
    sys.path.insert(0, str(ROOT / "tests"))
    from expectations import differences, expected, load, names

    rows = {}
    for name in names():
        model, inputs = load(name)
        wrong = differences(name, trace(model, inputs))
        rows[name] = {"parameters": len(expected(name)), "wrong": len({item[0] for item in wrong})}
    return rows


def llama() -> list[float]:
    """CPU seconds of tracing a Llama of 7 billion parameters on the meta device, several times."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, **sizes))
    seconds = []
    for _ in range(5):
        start = time.process_time()
        trace(model, {"input_ids": torch.zeros(1, 8, dtype=torch.long)})
        seconds.append(round(time.process_time() - start, 3))
    return seconds


def sweep(source: str, store: dict[str, Any], every: int) -> None:
    """Trace what is not in the store yet, and save after every model."""
    rows = store.setdefault(source, {})
    for index, (name, builds) in enumerate(SOURCES[source]()):
        if name in rows or index % every:
            continue
        try:
            rows[name] = best(builds)
        except Exception as error:  # the sweep counts what breaks, and goes on
            rows[name] = {"error": f"{type(error).__name__}: {str(error)[:120]}"}
        save(store)


def save(store: dict[str, Any]) -> None:
    """Write the store, with what it was measured on."""
    import timm
    import torchvision
    import transformers

    versions = {"torch": torch, "timm": timm, "torchvision": torchvision, "transformers": transformers}
    store["versions"] = {name: module.__version__ for name, module in versions.items()}
    store["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    store["date"] = time.strftime("%Y-%m-%d")
    STORE.parent.mkdir(parents=True, exist_ok=True)
    STORE.write_text(json.dumps(store, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def tables(store: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| source | models | traced | fake | optimistic | real | unknown activations | median CPU s | 95 % CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for source in SOURCES:
        if store.get(source):
            lines.append(_summary(source, store[source]))
    lines += ["", "Why models were not traced:", ""]
    for source in SOURCES:
        causes: dict[str, list[str]] = {}
        for name, row in store.get(source, {}).items():
            if not _traced(row):
                causes.setdefault(_cause(row), []).append(name)
        for cause, found in sorted(causes.items(), key=lambda item: -len(item[1])):
            lines.append(f"- {source}: {len(found)} × {cause}: {', '.join(found)}")
    lines += ["", *_scores(store)]
    if "llama" in store:
        seconds = " ".join(f"{value:.2f}" for value in store["llama"])
        lines += ["", f"A Llama of 7 billion parameters on the meta device, CPU seconds of five traces: {seconds}."]
    versions = ", ".join(f"{name} {version}" for name, version in store["versions"].items())
    return "\n".join([*lines, "", f"Measured {store['date']} on {store['machine']}; {versions}."])


def _traced(row: Row) -> bool:
    return row.get("source") in ("fake", "optimistic", "real")


def _summary(source: str, rows: dict[str, Row]) -> str:
    built = [row for row in rows.values() if "unbuilt" not in row]
    found = [row for row in built if _traced(row)]
    seconds = sorted(row["seconds"] for row in found)
    kinds = Counter(row["source"] for row in found)
    unknown = sum(row["unknown"] for row in found)
    total = sum(row["parameters"] for row in found)
    late = seconds[int(0.95 * (len(seconds) - 1))]
    cells = [source, len(built), f"{100 * len(found) / len(built):.1f} %"]
    cells += [kinds["fake"], kinds["optimistic"], kinds["real"], f"{unknown} of {total} parameters"]
    return "| " + " | ".join(map(str, [*cells, f"{statistics.median(seconds):.2f}", f"{late:.2f}"])) + " |"


def _cause(row: Row) -> str:
    if "unbuilt" in row:
        return "could not be built (not counted)"
    if "error" in row:
        return row["error"].split(":")[0]
    if any("kinds of example inputs" in note for note in row["notes"]):
        return "no example inputs that were tried led to a whole run"
    return str(row["notes"][-1])[:110]


def _scores(store: dict[str, Any]) -> list[str]:
    rows = store.get("expectations")
    if not rows:
        return []
    total, wrong = sum(row["parameters"] for row in rows.values()), sum(row["wrong"] for row in rows.values())
    lines = [
        f"Against hand-written expectations: {total - wrong} of {total} parameters of {len(rows)} models are right in"
    ]
    lines += [f"every listed field ({100 * (1 - wrong / total):.2f} %)."]
    first = store.get("first_score")
    if first:
        lines += [
            f"The first score, before any correction: {first['parameters'] - first['wrong']} of {first['parameters']} "
            f"({100 * (1 - first['wrong'] / first['parameters']):.2f} %)."
        ]
    return lines


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", help=f"of {', '.join(KNOWN)}; all when none is named")
    parser.add_argument("--stored", action="store_true", help="run nothing, print what is stored")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.sources) - set(KNOWN):
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(KNOWN)}")
    chosen = [] if options.stored else options.sources or KNOWN
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # What cannot be built on meta is built on the CPU, where the largest architectures shall fail, not the machine.
    resource.setrlimit(resource.RLIMIT_AS, (LARGEST, LARGEST))
    store = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}
    for source in chosen:
        if options.fresh:
            store.pop(source, None)
        if source == "expectations":
            store[source] = scored()
            store.setdefault("first_score", _sum(store[source]))
            save(store)
        elif source == "llama":
            store[source] = llama()
            save(store)
        else:
            sweep(source, store, options.every)
    text = tables(store)
    print(text)
    if options.write:
        put(PAGE, "sweep", text)


def _sum(rows: dict[str, Row]) -> Row:
    return {key: sum(row[key] for row in rows.values()) for key in ("parameters", "wrong")}


if __name__ == "__main__":
    main()
