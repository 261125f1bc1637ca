"""The commands that look at one model or one plan: trace, explain, apply, diff."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from fanin.errors import InputsError, MissingExtraError, compose
from fanin.files import require_writable, whole

Model = Annotated[str, typer.Argument(metavar="MODEL", help="timm/…, torchvision/…, transformers/… or module:factory.")]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan that fanin plan --save wrote.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Small = Annotated[bool, typer.Option("--small", help="Shrink a transformers model to two narrow layers.")]
Batch = Annotated[
    str | None,
    typer.Option("--inputs", metavar="BATCH", help="A .safetensors, .pt, .npy or .npz file, or module:factory."),
]
Seed = Annotated[int, typer.Option(help="With a parameter's name it decides its values.")]


def trace(
    model: Model,
    parameter: Annotated[str | None, typer.Option(help="Tell the story of this one instead.")] = None,
    inputs: Batch = None,
    small: Small = False,
    as_json: AsJson = False,
) -> None:
    """Show what MODEL does with every parameter, from one run on fake tensors; nothing is computed.

    **Examples**

    - `fanin trace timm/vit_tiny_patch16_224`

    - `fanin trace transformers/llama --small --parameter model.layers.0.mlp.gate_proj.weight`
    """
    import fanin

    with redirect_stdout(sys.stderr):  # what the model prints is no part of the output
        graph = fanin.trace(*subject(model, inputs, small))
    print(graph.to_json() if as_json else graph.explain(parameter) if parameter else graph)


def explain(
    code: Annotated[str, typer.Argument(help="Such as F101; nothing lists all.")] = "", as_json: AsJson = False
) -> None:
    """Say what a finding's code means, why it matters and where that is from."""
    from fanin import findings

    if as_json:
        known = {name: rule.title for name, rule in findings.RULES.items()}
        print(json.dumps({code.upper(): findings.explain(code)} if code else known, indent=1, ensure_ascii=False))
        return
    print(findings.explain(code) if code else findings.overview())


def apply(
    plan: PlanFile,
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .safetensors file.")],
    seed: Seed = 0,
    small: Small = False,
) -> None:
    """Write MODEL's parameters as PLAN says, and save the model's state.

    Exit code: 0 written, 1 the model is not as planned and was not saved, 2 could not run.

    **Example**

    - `fanin apply init.json torchvision/resnet18 -o model.safetensors`
    """
    import fanin
    from fanin.models import load

    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise InputsError(compose(f"--out {out}", "a .safetensors file in a folder that exists"))
    require_writable(out)
    decided = fanin.Plan.load(plan)
    built, _ = load(model, small=small)
    fanin.apply(decided, built, seed=seed)
    report = decided.verify(built)
    if not report:
        print(f"{report}\nnothing was written", file=sys.stderr)
        raise typer.Exit(1)
    save_model(built, out)
    print(f"{report}\nwritten to {out.resolve()}", file=sys.stderr)


def diff(before: PlanFile, after: PlanFile, as_json: AsJson = False) -> None:
    """Show what two plans do differently; exit code 1 when they do.

    **Example**

    - `fanin diff a.json b.json`
    """
    from fanin.plans import Plan

    difference = Plan.load(before).diff(Plan.load(after))
    print(json.dumps(difference.to_dict(), indent=1) if as_json else difference)
    raise typer.Exit(1 if difference else 0)


def subject(model: str, inputs: str | None, small: bool) -> tuple[Any, Any]:
    """A model, without values where it allows that, and what it is called with: the batch given, or its own."""
    from fanin.examples import read_inputs
    from fanin.models import load

    built, own = load(model, small=small, meta=True)
    return built, own if inputs is None else read_inputs(inputs, built)


def codes(text: str) -> tuple[str, ...]:
    """Codes with commas between."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def save_model(model: Any, out: Path) -> None:
    """Write a model's state, ties kept, whole or not at all.

    Raises:
        MissingExtraError: safetensors is not installed.
        InputsError: safetensors could not write it.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_model as save
    except ModuleNotFoundError as error:
        raise MissingExtraError("safetensors", "all", "saving a model") from error
    with whole(out) as scratch:
        try:
            save(model, str(scratch))
        except SafetensorError as error:
            raise InputsError(compose(f"--out {out}", "a file that can be written", str(error))) from None
