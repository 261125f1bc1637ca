"""``fanin check``: what a linter is to code, for how a model starts."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fanin import tables
from fanin.commands import AsJson, Batch, Model, Seed, Small, codes, save_model
from fanin.errors import InputsError, compose
from fanin.files import require_writable

if TYPE_CHECKING:
    from fanin.diagnoses import Diagnosis
    from fanin.examples import Loss
    from fanin.plans import Plan

SAMPLES = 4
"""The batch of example images or tokens: enough to tell whether a model still tells samples apart."""


def check(
    model: Model,
    inputs: Batch = None,
    loss: Annotated[
        str | None, typer.Option(metavar="LOSS", help="cross-entropy, mse, or module:function of the output.")
    ] = None,
    select: Annotated[str, typer.Option(metavar="CODES", help="Only these, or their beginnings: F1,F203.")] = "",
    ignore: Annotated[str, typer.Option(metavar="CODES", help="Leave these out.")] = "",
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Run all, but look only at these modules: 'blocks.*'. May be repeated."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Start the model by this plan first; fixes edit it.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended, save it, and check again.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="With --fix: model.safetensors, or plan.json for the plan."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What was found, as a page (.html) or a record (.json).")
    ] = None,
    seed: Seed = 0,
    small: Small = False,
    as_json: AsJson = False,
) -> None:
    """Look for faults in how MODEL starts, from one forward and backward on a batch.

    Exit code: 0 healthy, 1 findings, 2 could not run. Notes are not findings.

    A real batch says most. Without one it is made up: noise of unit variance or random tokens. A loss with drawn
    targets tells whether the first one is what a guess would give. `fanin explain CODE` tells what a code means.

    **Examples**

    - `fanin check torchvision/resnet18 --loss cross-entropy`

    - `fanin check mymodels:build --inputs mymodels:batch --ignore F4,F209`

    - `fanin check timm/vit_tiny_patch16_224 --layers 'blocks.*' --layers head`

    - `fanin check mymodels:build --inputs batch.npz --report report.html`

    - `fanin check mymodels:build --fix -o model.safetensors`
    """
    from fanin.measuring.measure import selector

    _require_targets(fix, out, report)
    # What a user's code prints is no part of the output, which may be read by a program.
    with redirect_stdout(sys.stderr):
        subject = replace(
            _subject(model, inputs, loss, plan, seed, small),
            layers=tuple(layers) if layers else None,
            select=codes(select),
            ignore=codes(ignore),
        )
        selector(subject.model, subject.layers)  # a wrong glob is no batch that does not fit
        subject, found = _judge(subject)
        if report:
            found.save(report)
        if fix and out:
            found = _mend(subject, found, seed, out)
    print(found.to_json() if as_json else found)
    if not as_json:
        print(_closing(subject, found, fix))
    if report:
        print(f"written to {report.resolve()}", file=sys.stderr)
    raise typer.Exit(0 if found.ok else 1)


@dataclass(frozen=True)
class _Subject:
    """What is judged: a model, the batches to try on it with where each is from, a loss, and a plan that it follows."""

    name: str
    model: Any
    batches: tuple[tuple[str, Any], ...]
    loss: Loss | None
    plan: Plan | None
    given: bool
    """The batch is known to be right: if the model does not take it, that is an error."""
    layers: tuple[str, ...] | None = None
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def diagnose(self, batch: Any) -> Diagnosis:
        """The diagnosis on one batch; None judges the values alone."""
        from fanin.diagnosing import diagnose
        from fanin.progress import waiting

        with waiting(f"measuring {self.name}"):
            loss = None if batch is None else self.loss
            return diagnose(
                self.model,
                batch,
                loss=loss,
                plan=self.plan,
                layers=self.layers,
                select=self.select,
                ignore=self.ignore,
            )


def _subject(name: str, inputs: str | None, loss: str | None, plan: Path | None, seed: int, small: bool) -> _Subject:
    from fanin.applying import apply
    from fanin.examples import loss_named, made_up_inputs, read_inputs
    from fanin.models import load
    from fanin.plans import Plan
    from fanin.progress import waiting

    with waiting(f"building {name}"):
        model, own = load(name, small=small, samples=SAMPLES)
        decided = None if plan is None else Plan.load(plan)
        if decided is not None:
            apply(decided, model, seed=seed)
        if inputs is not None:
            batches = [(inputs, read_inputs(inputs, model))]
        else:
            batches = [("", own)] if own is not None else list(made_up_inputs(model))
        of_output = None if loss is None else loss_named(loss)
    return _Subject(name, model, tuple(batches), of_output, decided, inputs is not None or own is not None)


def _judge(subject: _Subject) -> tuple[_Subject, Diagnosis]:
    """The diagnosis, and the subject with the one batch that the model took."""
    failures: list[InputsError] = []
    for origin, batch in subject.batches:
        try:
            return replace(subject, batches=((origin, batch),)), subject.diagnose(batch)
        except InputsError as error:
            failures.append(error)
    if failures:
        raise failures[0] if subject.given else _unfed(subject, failures[0])
    return replace(subject, batches=(("", None),)), subject.diagnose(None)


def _unfed(subject: _Subject, failure: InputsError) -> InputsError:
    tried = f"{subject.name}, which takes none of {len(subject.batches)} made-up batches"
    why = str(failure).replace("\n", "; ")
    return InputsError(compose(tried, "a batch", f"the first: {why}", f"fanin check {subject.name} --inputs batch.npz"))


def _mend(subject: _Subject, found: Diagnosis, seed: int, out: Path) -> Diagnosis:
    """Write the plan's edits into the model, save it, and judge again."""
    from fanin.applying import apply

    mended = found.fix()
    apply(mended, subject.model, seed=seed)
    if out.suffix == ".json":
        mended.save(out)
    else:
        save_model(subject.model, out)
    assert found.plan is not None
    print(f"{found.plan.diff(mended)}\nwritten to {out.resolve()}", file=sys.stderr)
    return _judge(replace(subject, plan=mended))[1]


def _closing(subject: _Subject, found: Diagnosis, fixed: bool) -> str:
    """What was looked at, and what can be done about what was found."""
    signals, lines = found.signals, ["healthy: nothing but notes"] if found.ok and found.findings else []
    parameters = tables.counted(len(signals.parameters), "parameter")
    if not signals.has_run:
        advice = "" if subject.given else ": give --inputs to run it"
        lines.append(f"{parameters} judged by their values alone{advice}")
    else:
        origin = subject.batches[0][0]
        where = f", {origin}" if origin else ""
        operations = tables.counted(len(signals.layers), "operation")
        lines.append(f"{parameters} and {operations}, on {signals.inputs}{where}")
    mendable = sum(bool(finding.edits) for finding in found.findings)
    if mendable and not fixed:
        lines.append(f"{mendable} of {len(found.findings)} can be mended: --fix -o model.safetensors")
    return "\n".join(lines)


def _require_targets(fix: bool, out: Path | None, report: Path | None) -> None:
    """Say before anything is run what would keep its outcome from being written."""
    if fix != (out is not None):
        given = "--fix without --out" if fix else "--out without --fix"
        raise InputsError(compose(given, "both or neither", instead="--fix -o model.safetensors"))
    for target, suffixes in ((out, (".safetensors", ".json")), (report, (".html", ".json"))):
        if target is not None and (target.suffix not in suffixes or not target.absolute().parent.is_dir()):
            needed = f"a file in a folder that exists, whose name ends in {' or '.join(suffixes)}"
            raise InputsError(compose(f"the target {target}", needed))
        if target is not None:
            require_writable(target)
