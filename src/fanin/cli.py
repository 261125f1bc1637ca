"""The command line: parse, call, print. Torch is imported by the commands that need it."""

from __future__ import annotations

import inspect
import io
import json
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fanin import commands, tables
from fanin.checking import check
from fanin.commands import AsJson, Batch, Model, Small
from fanin.errors import FaninError, InputsError, MissingExtraError, compose
from fanin.files import require_writable

if TYPE_CHECKING:
    from fanin.race import Comparison

PAGE = Path("race.html")
"""Where the page of a race goes when nothing else is said."""

app = typer.Typer(
    help="Start every parameter of a PyTorch model right, and see whether it worked.\n\n"
    "MODEL is timm/resnet50, torchvision/vgg16, transformers/gpt2 (from its config, nothing is downloaded), "
    "or package.module:factory, a function of yours that returns a model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """Run the command line; an error that fanin raises on purpose is its message and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe of another encoding shows ? for √, and goes on
            stream.reconfigure(errors="replace")
    try:
        app()
    except (FaninError, OSError) as error:
        print(tables.printable(str(error)), file=sys.stderr)
        sys.exit(2)
    except Exception:
        # Python would leave with 1, which says that something was found.
        traceback.print_exc()
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"fanin {installed('fanin')}")
        raise typer.Exit


@app.command()
def plan(
    model: Model,
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, or module:function.")] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan as JSON.")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="One line a scheme, not one a parameter.")] = False,
    inputs: Batch = None,
    small: Small = False,
    as_json: AsJson = False,
) -> None:
    """Show how every parameter of MODEL would start, and why; nothing is written.

    **Examples**

    - `fanin plan timm/resnet50`

    - `fanin plan transformers/gpt2 --small --recipe he --save init.json`

    - `fanin plan mymodels:build --summary`
    """
    import fanin

    chosen = {} if recipe is None else {"recipe": _recipe(recipe)}
    with redirect_stdout(sys.stderr):  # what the model prints is no part of the output
        decided = fanin.plan(*commands.subject(model, inputs, small), **chosen)
    if save:
        decided.save(save)
        print(f"plan written to {save}", file=sys.stderr)
    print(decided.to_json() if as_json else decided.summary() if summary else decided)


@app.command()
def compare(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Nothing: the demonstration.")] = None,
    data: Annotated[str | None, typer.Option(metavar="MODULE:FUNCTION", help="Returns the data to train on.")] = None,
    recipes: Annotated[
        str | None, typer.Option(help="Names, module:functions or plan.json files, with commas.")
    ] = None,
    lrs: Annotated[str | None, typer.Option(help="Learning rates, with commas.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of each run.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Where the data does not come in batches.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, momentum, adam or adamw.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; as many as cores.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f".html, .svg, .png or .json; {PAGE} if not given.")
    ] = None,
    small: Small = False,
    as_json: AsJson = False,
) -> None:
    """Race initializations on real data: same batches, each recipe at its own best learning rate.

    Without MODEL: handwritten digits and a 30-layer ReLU network, which PyTorch's default start never gets to train.

    **Examples**

    - `fanin compare`

    - `fanin compare mymodels:build --data mymodels:data --recipes torch,he --lrs 0.01,0.1 --steps 500`

    - `fanin compare fanin.tasks:deep_network --data fanin.tasks:digits --recipes he,init.json --out race.png`

    The data is what `fanin.compare` takes: (x, y), ((x, y), (x_test, y_test)), a Dataset, a DataLoader, or batches.
    """
    if out is not None:
        _check_writable(out)
    settings: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "recipes": _recipes(recipes) if recipes else None,
        "lrs": _numbers(lrs) if lrs else None,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    result = _race(model, data, small, {**given, "seeds": seeds, "workers": workers})
    print(result.to_json() if as_json else result)
    if out is not None or not as_json:
        _write(result, out)


@app.command()
def schemes(as_json: AsJson = False) -> None:
    """List the schemes: the rules for one tensor, with their formulas and sources."""
    from fanin.reports.text import scheme_rows

    rows = scheme_rows()
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    columns = [tables.Column("scheme"), tables.Column("what it draws", wrap=True), tables.Column("source", wrap=True)]
    print(tables.render(columns, [(row["scheme"], row["summary"], ", ".join(row["sources"])) for row in rows]))


@app.command()
def gains(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One activation: silu, gelu, …")] = None,
    as_json: AsJson = False,
) -> None:
    """List the gains of activations, or one with who says otherwise.

    **Examples**

    - `fanin gains`

    - `fanin gains silu`
    """
    from dataclasses import asdict

    from fanin import gains as known

    wanted = known.moments(name).activation if name else ""
    found = [row for row in known.table() if wanted in ("", row.activation)]
    claims = [claim for claim in known.disagreements() if claim.activation == wanted.partition("(")[0]]
    if as_json:
        others = [{**asdict(claim), "exact": claim.exact} for claim in claims]
        print(json.dumps([{**asdict(row), **({"claims": others} if name else {})} for row in found], indent=1))
        return
    heads = ("gain", "centred", "backward", "χ")
    columns = [tables.Column("activation"), *(tables.Column(head, right=True) for head in heads)]
    cells = [
        (
            row.activation,
            *(tables.number(value, 6) for value in (row.gain, row.gain_centred, row.gain_backward, row.chi)),
        )
        for row in found
    ]
    print(tables.render(columns, cells, footer="" if name else _GAINS))
    if name:
        print(f"holds: {found[0].holds}")
        _print_claims(claims)


_GAINS = """
For z ~ N(0, 1): gain 1/√E φ² keeps the second moment, centred 1/√Var φ the
variance, backward 1/√E φ'² the gradient's; χ is what gradients grow by in each
layer when the signal is kept. One in detail: fanin gains silu"""


def _print_claims(claims: list[Any]) -> None:
    if not claims:
        return
    columns = [tables.Column("who says", wrap=True), tables.Column("value", right=True)]
    columns += [tables.Column("exact", right=True), tables.Column("kind"), tables.Column("remark", wrap=True)]
    cells = [
        (claim.source, tables.number(claim.value, 6), tables.number(claim.exact, 6), claim.kind, claim.remark)
        for claim in claims
    ]
    print("\n" + tables.render(columns, cells))


def _race(model: str | None, data: str | None, small: bool, settings: dict[str, Any]) -> Comparison:
    import fanin
    from fanin import tasks
    from fanin.comparison.workers import usable_cores
    from fanin.models import imported, load

    if model is None and data is None:
        defaults = {"recipes": tasks.RECIPES, "lrs": tasks.LRS, "steps": tasks.STEPS}
        defaults |= {"batch_size": tasks.BATCH_SIZE, "optimizer": tasks.OPTIMIZER, "task": tasks.TITLE}
        settings = {**defaults, **settings}
        runs = len(settings["recipes"]) * len(settings["lrs"]) * settings["seeds"]
        cores = settings["workers"] or usable_cores()
        print(f"» {tasks.TITLE}\n» {runs} runs on {cores} cores, about a minute or two", file=sys.stderr)
        return fanin.compare(tasks.deep_network, tasks.digits(), **settings)
    if model is None or data is None:
        missing = "MODEL" if model is None else "--data"
        raise InputsError(
            compose(
                f"fanin compare without {missing}",
                "a model and data to train it on (or neither, for the demonstration)",
                instead="fanin compare mymodels:build --data mymodels:data",
            )
        )
    source = imported(data)
    parameters = inspect.signature(source).parameters if callable(source) else {}
    # A function of a seed is itself a stream of batches; one without arguments returns the data.
    examples = source if "seed" in parameters or not callable(source) else source()
    return fanin.compare(lambda: load(model, small=small)[0], examples, task=f"{model} on {data}", **settings)


for command in (commands.trace, check, commands.explain, commands.apply, commands.diff):
    app.command()(command)


def _write(result: Comparison, out: Path | None) -> None:
    target = out or PAGE
    try:
        result.save(target)
    except MissingExtraError as error:
        if out is not None:
            raise
        print(f"\nno page was written.\n{error}", file=sys.stderr)
        return
    print(f"\nwritten to {target.resolve()}", file=sys.stderr)


def _check_writable(out: Path) -> None:
    """Say before the race, not after it, what would keep its outcome from being written."""
    if not out.parent.is_dir():
        raise InputsError(compose(f"--out {out}", "a file in a folder that exists", instead=f"mkdir -p {out.parent}"))
    require_writable(out)
    if out.suffix == ".json":
        return
    if out.suffix not in (".html", ".svg", ".png"):
        raise InputsError(compose(f"--out {out}", "a name that ends in .html, .svg, .png or .json"))
    from fanin.reports.figures import altair

    altair()


def _recipe(text: str) -> Any:
    if text.endswith(".json"):
        from fanin.plans import Plan

        return Plan.load(text)
    if ":" in text:
        from fanin.models import Theirs, imported

        found = imported(text)
        return Theirs(text, found, "a recipe: a function from a graph to a plan") if callable(found) else found
    return text


def _recipes(text: str) -> dict[str, Any]:
    return {part.strip(): _recipe(part.strip()) for part in text.split(",") if part.strip()}


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputsError(
            compose(f"--lrs {text!r}", "numbers with commas between", instead="--lrs 0.001,0.01")
        ) from None
