"""The commands that look at one model or one plan: trace, check, explain, apply, diff."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fanin.errors import InputsError, MissingExtraError, compose

Model = Annotated[str, typer.Argument(metavar="MODEL", help="timm/…, torchvision/…, transformers/… or module:factory.")]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan that fanin plan --save wrote.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Small = Annotated[bool, typer.Option("--small", help="Shrink a transformers model to two narrow layers.")]
Seed = Annotated[int, typer.Option(help="With a parameter's name it decides its values.")]


def trace(
    model: Model,
    parameter: Annotated[str | None, typer.Option(help="Tell the story of this one instead.")] = None,
    small: Small = False,
    as_json: AsJson = False,
) -> None:
    """Show what MODEL does with every parameter, from one run on fake tensors; nothing is computed.

    **Examples**

    - `fanin trace timm/vit_tiny_patch16_224`

    - `fanin trace transformers/llama --small --parameter model.layers.0.mlp.gate_proj.weight`
    """
    import fanin
    from fanin.models import load

    built, inputs = load(model, small=small, meta=True)
    graph = fanin.trace(built, inputs)
    print(graph.to_json() if as_json else graph.explain(parameter) if parameter else graph)


def check(
    model: Model,
    select: Annotated[str, typer.Option(help="Codes or their beginnings, with commas: F1,F203.")] = "",
    ignore: Annotated[str, typer.Option(help="Codes to leave out.")] = "",
    small: Small = False,
    as_json: AsJson = False,
) -> None:
    """Look for faults in how MODEL starts, as a linter does; exit code 0 healthy, 1 findings, 2 could not run.

    MODEL is judged as its constructor makes it, on example inputs of unit variance. `fanin explain CODE` tells what a
    code means.

    **Examples**

    - `fanin check torchvision/resnet18`

    - `fanin check mymodels:build --ignore F5`
    """
    from fanin.diagnosing import diagnose
    from fanin.models import load

    built, inputs = load(model, small=small)
    found = diagnose(built, inputs, select=_codes(select), ignore=_codes(ignore))
    print(found.to_json() if as_json else found)
    raise typer.Exit(0 if found.ok else 1)


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

    **Example**

    - `fanin apply init.json torchvision/resnet18 -o model.safetensors`
    """
    import fanin
    from fanin.models import load

    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise InputsError(compose(f"--out {out}", "a .safetensors file in a folder that exists"))
    built, _ = load(model, small=small)
    decided = fanin.Plan.load(plan)
    fanin.apply(decided, built, seed=seed)
    report = decided.verify(built)
    _save(built, out)
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


def add_to(app: typer.Typer) -> None:
    """Make these commands known to the command line."""
    for command in (trace, check, explain, apply, diff):
        app.command()(command)


def _codes(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _save(model: Any, out: Path) -> None:
    """Write the state through a scratch file, so that an interruption leaves no half of one."""
    try:
        from safetensors.torch import save_model
    except ModuleNotFoundError as error:
        raise MissingExtraError("safetensors", "all", "saving a model") from error
    scratch = out.with_name(out.name + ".part")
    try:
        save_model(model, str(scratch))
        scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True)
