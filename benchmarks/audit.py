"""The audit: diagnose every model of timm, torchvision and transformers as its library constructs it.

    python benchmarks/audit.py [--only timm] [--limit 100] [--unseen] [--again] [--healthy] [--stored] [--write]

The findings go to `docs/benchmarks/audit.json` model by model, so that it can be stopped and continued. ``--write``
puts the tables into `docs/audit.md`; ``--healthy`` prints the share of models with false findings, ``--stored`` runs
nothing, ``--unseen`` marks the models of this run as the first test of rules that were changed before it, ``--again``
judges those in which something was found by the rules as they are now. timm's smallest model of each module comes
first, then the second; those over 100 million parameters are left out.

While a model is built, ``torch.empty`` gives NaN instead of what the memory held, so that a parameter which nothing
initializes is seen on every run, and not by luck.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn

from configurations import shrunk
from fanin.comparison.randomness import seeded
from fanin.diagnoses import Diagnosis
from fanin.diagnosing import diagnose
from fanin.errors import FaninError
from fanin.examples import made_up_inputs
from fanin.models import torchvision_model, transformers_model
from fanin.progress import track
from pages import put

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "docs" / "benchmarks" / "audit.json"
PAGE = ROOT / "docs" / "audit.md"

LARGEST = 100_000_000
"""Parameters of the largest model that is audited."""
SECONDS, MEMORY = 240, 10 << 30
"""After which a model is given up; bytes of address space, so that what is too large fails, and not the machine."""
SAMPLES = 4
"""Of images, at 224 × 224; fewer of larger ones."""

TRUE: dict[str, tuple[str, ...]] = {
    "timm/convformer_s36": ("F106",),
    "timm/ese_vovnet19b_dw": ("F201",),
    "timm/ese_vovnet19b_slim_dw": ("F201",),
    "timm/gc_efficientnetv2_rw_t": ("F201", "F308"),
    "timm/legacy_xception": ("F201",),
    "timm/mobilenetv4_hybrid_large": ("F301",),
    "timm/mobilenetv4_hybrid_large_075": ("F301",),
    "timm/mobilenetv4_hybrid_medium": ("F301",),
    "timm/mobilenetv4_hybrid_medium_075": ("F301",),
    "timm/poolformerv2_m48": ("F106",),
    "torchvision/alexnet": ("F301",),
    "transformers/blip": ("F301", "F402"),
    "transformers/bridgetower": ("F203",),
    "transformers/clap": ("F203",),
    "transformers/cpmant": ("F201", "F308"),
    "transformers/d_fine": ("F203", "F301"),
    "transformers/deimv2": ("F301",),
    "transformers/efficientloftr": ("F205",),
    "transformers/efficientnet": ("F205", "F405"),
    "transformers/mobilevit": ("F205", "F301", "F307"),
    "transformers/mobilevitv2": ("F205", "F301", "F307"),
    "transformers/modernbert": ("F203",),
    "transformers/modernbert-decoder": ("F203",),
    "transformers/modernvbert": ("F203",),
    "transformers/nemotron_asr_streaming_encoder": ("F301", "F307"),
    "transformers/parakeet_ctc": ("F301", "F307"),
    "transformers/parakeet_encoder": ("F301", "F307"),
    "transformers/pe_audio": ("F203",),
    "transformers/phi4_multimodal": ("F201",),
    "transformers/pp_doclayout_v3": ("F205", "F301"),
    "transformers/pp_doclayout_v4": ("F205", "F301"),
    "transformers/rt_detr": ("F203", "F205", "F301"),
    "transformers/rt_detr_v2": ("F203", "F205", "F301"),
    "transformers/sam_hq_vision_model": ("F301", "F401"),
    "transformers/sam_vision_model": ("F301", "F401"),
    "transformers/switch_transformers": ("F201", "F308"),
    "transformers/xclip": ("F201", "F304", "F308"),
}
"""The findings that `docs/audit.md` explains; every other one counts as false."""

Build = Callable[[str], nn.Module]
Row = dict[str, Any]
Store = dict[str, Any]


def timm_model(name: str) -> nn.Module:
    """A model of timm, without pretrained weights."""
    import timm

    return timm.create_model(name, pretrained=False)


def shrunk_transformers_model(name: str) -> nn.Module:
    """A model of transformers with its language head, if it has one, from a tiny configuration.

    Where a configuration cannot be shrunk (widths that have to agree), it is only cut to two layers.
    """
    import transformers

    kind = transformers.CONFIG_MAPPING[name]
    try:
        return transformers_model(shrunk(kind()))
    except Exception:  # a constructor may raise anything at widths that it does not expect
        return transformers_model(shrunk(kind(), only=("num_hidden_layers", "num_layers")))


def timm_names(store: Store) -> list[str]:
    """By rank of size within their module: the smallest of each first, then the second, …"""
    import timm

    sizes = store.setdefault("sizes", {})
    for name in timm.list_models():
        if name not in sizes:
            sizes[name] = _size(timm_model, name)
    families = [sorted(timm.list_models(module=module), key=sizes.__getitem__) for module in timm.list_modules()]
    return [name for rank in zip_longest(*families) for name in rank if name and sizes[name] <= LARGEST]


def _size(build: Build, name: str) -> int:
    """Parameters of a model; what the meta device cannot build counts as small, to be tried."""
    try:
        with torch.device("meta"):
            return _count(build(name))
    except Exception:  # computes with its weights when it is built
        return 0


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def torchvision_names(store: Store) -> list[str]:
    """All but the quantized, whose weights are no parameters."""
    from torchvision import models

    return [name for name in models.list_models() if not name.startswith("quantized")]


def transformers_names(store: Store) -> list[str]:
    """Every kind of configuration that has a base model."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    return [name for name, kind in CONFIG_MAPPING.items() if kind in MODEL_MAPPING]


LIBRARIES: dict[str, tuple[Callable[[Store], list[str]], Build]] = {
    "timm": (timm_names, timm_model),
    "torchvision": (torchvision_names, torchvision_model),
    "transformers": (transformers_names, shrunk_transformers_model),
}


def built(library: str, name: str) -> nn.Module:
    """A model as constructed by seed 0, in which memory that nothing wrote is NaN."""
    with seeded(0):
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            return LIBRARIES[library][1](name)
        finally:
            torch.use_deterministic_algorithms(False)


def judged(model: nn.Module) -> Diagnosis:
    """The diagnosis on the first made-up inputs that the model takes; on its values alone where it takes none."""
    for _, inputs in made_up_inputs(model):
        try:
            return diagnose(model, fewer(inputs))
        except FaninError:
            continue
    return diagnose(model)


def fewer(inputs: Any) -> Any:
    """Fewer samples where they are large."""
    from torch.utils import _pytree as pytree

    def cut(item: Any) -> Any:
        if not isinstance(item, torch.Tensor) or item.ndim < 4:
            return item
        return item[: max(2, min(SAMPLES, SAMPLES * 3 * 224 * 224 * item.shape[0] // item.numel()))]

    return pytree.tree_map(cut, inputs)


def audited(library: str, name: str) -> Row:
    """One model's row: how it was judged, and its findings, those of one code and severity in one entry."""
    start = time.process_time()
    size = _size(LIBRARIES[library][1], name)
    if size > LARGEST:
        return {"skipped": f"{size / 1e6:.0f} M parameters"}
    model = built(library, name)
    diagnosis = judged(model)
    entries: dict[tuple[str, str], Row] = {}
    for item in diagnosis.findings:
        key = (item.code, str(item.severity))
        known = entries.setdefault(key, {"place": item.place, "seen": item.seen[:160], "places": 0})
        known["places"] += 1 + len(item.places)
    return {
        "run": diagnosis.signals.has_run,
        "parameters": _count(model),
        "findings": [{"code": code, "severity": severity, **entry} for (code, severity), entry in entries.items()],
        "seconds": round(time.process_time() - start, 1),
    }


def sweep(library: str, store: Store, limit: int | None, *, unseen: bool, again: bool) -> None:
    """Audit what is not in the store yet, or again what has findings, and save after every model."""
    rows = store.setdefault(library, {})
    names = [
        name for name in LIBRARIES[library][0](store) if (_is_suspect(rows.get(name)) if again else name not in rows)
    ]
    for name in track(names[:limit], library):
        before = rows.get(name, {})
        if not again:
            rows[name] = {"failed": "ended the process"}
            save(store)
        try:
            with time_limit():
                row = audited(library, name) | {"date": today()} | ({"unseen": True} if unseen else {})
            rows[name] = row | _first_verdict(before)
        except (Exception, OutOfTime) as error:  # the sweep counts what breaks, and goes on
            rows[name] = before if again else {"failed": f"{type(error).__name__}: {str(error)[:120]}"}
        gc.collect()  # models hold cycles, and their memory is all that there is
        save(store)


def _is_suspect(row: Row | None) -> bool:
    return row is not None and any(severity != "note" for severity, _ in found(row))


def _first_verdict(before: Row) -> Row:
    """What the first look at a model said, when the rules had not been changed by it: later ones prove nothing."""
    return {"unseen": True, "first": before.get("first", before["findings"])} if before.get("unseen") else {}


class OutOfTime(BaseException):
    """Not an Exception: what fails in training mode is measured in evaluation mode instead, and this is no failure."""


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise OutOfTime in what runs inside for too long."""

    def stop(*_: object) -> None:
        raise OutOfTime(f"over {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def save(store: Store) -> None:
    """Write the store, a line a model, with the versions it was measured with."""
    import timm
    import torchvision
    import transformers

    versions = {"torch": torch, "timm": timm, "torchvision": torchvision, "transformers": transformers}
    store["versions"] = {name: module.__version__ for name, module in versions.items()}
    store["date"] = today()
    parts = []
    for key, value in sorted(store.items()):
        text = _compact(value)
        if key in LIBRARIES:
            rows = (f"{json.dumps(name)}:{_compact(row)}" for name, row in value.items())
            text = "{\n" + ",\n".join(rows) + "\n}"
        parts.append(f"{json.dumps(key)}:{text}")
    scratch = STORE.with_suffix(".part")
    scratch.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
    scratch.replace(STORE)


def today() -> str:
    return time.strftime("%Y-%m-%d")


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def tables(store: Store) -> str:
    """The findings by code and library, as Markdown: in how many models."""
    libraries = [library for library in LIBRARIES if store.get(library)]
    lines = [f"| severity | code | {' | '.join(libraries)} |", "|---|---|" + "---|" * len(libraries)]
    counts = {library: Counter(key for row in store[library].values() for key in found(row)) for library in libraries}
    for severity in ("error", "warning", "note"):
        for code in sorted({key[1] for counter in counts.values() for key in counter if key[0] == severity}):
            cells = (str(counts[library][severity, code] or "") for library in libraries)
            lines.append(f"| {severity} | {code} | {' | '.join(cells)} |")
    for words, holds in (
        ("models run", lambda row: bool(row.get("run"))),
        (f"of them on {store['date']}", lambda row: bool(row.get("run")) and row.get("date") == store["date"]),
        ("judged by their values alone", lambda row: row.get("run") is False),
        ("skipped, too large", lambda row: "skipped" in row),
        ("failed", lambda row: "failed" in row),
    ):
        cells = (str(sum(map(holds, store[library].values()))) for library in libraries)
        lines.append(f"| | {words} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in store["versions"].items())
    return "\n".join([*lines, "", scored(store), "", f"Measured {store['date']}; {versions}."])


def found(row: Row, *, first: bool = False) -> set[tuple[str, str]]:
    """The severities and codes of one model; those of the first look at it where it was judged again."""
    items = row.get("first", row.get("findings", ())) if first else row.get("findings", ())
    return {(item["severity"], item["code"]) for item in items}


def _true(library: str, name: str) -> tuple[str, ...]:
    return TRUE.get(f"{library}/{name}", ())


def scored(store: Store) -> str:
    """In how many of the models that were run something was found that is not known to be true, as Markdown.

    A row marked ``unseen`` was audited for the first time after the rules had last been changed.
    """
    lines = ["| | models run | false error | false warning |", "|---|---|---|---|"]
    for library in LIBRARIES:
        rows = {name: row for name, row in store.get(library, {}).items() if row.get("run")}
        unseen = {name: row for name, row in rows.items() if row.get("unseen")}
        for words, part in ((library, rows), (f"{library}, never seen before", unseen)):
            if not part:
                continue
            false = [
                {severity for severity, code in found(row, first=part is unseen) if code not in _true(library, name)}
                for name, row in part.items()
            ]
            shares = (sum(severity in each for each in false) for severity in ("error", "warning"))
            cells = (f"{count} ({count / len(part):.1%})" for count in shares)
            lines.append(f"| {words} | {len(part)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parser_of(description: str | None, page: Path) -> argparse.ArgumentParser:
    """What every sweep over the libraries can be asked for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=LIBRARIES, action="append")
    parser.add_argument("--limit", type=int, help="models of each library")
    parser.add_argument("--stored", action="store_true", help="run nothing, print what is stored")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {page.relative_to(ROOT)}")
    return parser


def prepare() -> None:
    """One thread, no warnings, and a bound on memory, so that what is too large fails, and not the machine."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main() -> None:
    """Run the audit."""
    parser = parser_of(__doc__, PAGE)
    parser.add_argument("--healthy", action="store_true", help="print the share of false findings alone")
    parser.add_argument("--unseen", action="store_true", help="mark what runs now as never seen by who made the rules")
    parser.add_argument("--again", action="store_true", help="judge again where something was found")
    options = parser.parse_args()
    prepare()
    store: Store = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}
    for library in () if options.stored or options.healthy else options.only or LIBRARIES:
        sweep(library, store, options.limit, unseen=options.unseen, again=options.again)
    text = scored(store) if options.healthy else tables(store)
    print(text)
    if options.write:
        put(PAGE, "audit", text)


if __name__ == "__main__":
    main()
