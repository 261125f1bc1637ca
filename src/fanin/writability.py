"""What could go wrong while a plan is written, found before the first byte is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from fanin import sharding
from fanin.errors import ApplyError, FaninError, compose
from fanin.matching import Match
from fanin.parametrized import Own, require_holdable
from fanin.ranges import require_range
from fanin.sites import require_fit
from fanin.tracing.names import named_modules

SHOWN = 20
"""How many problems a message lists."""


def require_writable(
    matches: Sequence[Match], model: nn.Module, *, seed: int, device: torch.device | str | None
) -> None:
    """Raise unless every row can be written into its parameter.

    Raises:
        ApplyError: some cannot; the message lists them, and what to write instead for the first.
    """
    if device is not None:
        _require_device(device)
    _raise([*_meta_problems(matches, model, device), *_row_problems(matches, seed)])


def require_rows(matches: Sequence[Match]) -> None:
    """The same for a model that need not have memory yet.

    Raises:
        ApplyError: see `require_writable`.
    """
    _raise(list(_row_problems(matches, seed=0)))


def _raise(problems: Sequence[tuple[str, FaninError]]) -> None:
    if problems:
        name, first = problems[0]
        others = [f"{name}: {_headline(error)}" for name, error in problems[1 : SHOWN + 1]]
        more = [f"… and {len(problems) - SHOWN - 1} more"] if len(problems) > SHOWN + 1 else []
        also = "\n  ".join(["\nalso:", *others, *more]) if others else ""
        raise ApplyError(f"{name} cannot be written; the model is as it was\n{first}{also}")


def _require_device(device: torch.device | str) -> None:
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ApplyError(compose(f"device={device!r}", "a device of torch", str(error), 'device="cpu"')) from None


def _headline(error: FaninError) -> str:
    return str(error).splitlines()[0].removeprefix("given: ")


def _meta_problems(
    matches: Sequence[Match], model: nn.Module, device: torch.device | str | None
) -> Iterator[tuple[str, ApplyError]]:
    buffers = [
        f"{path}.{name}" if path else name
        for path, module in named_modules(model)
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.is_meta
    ]
    if buffers:
        yield (
            buffers[0],
            _meta_buffers(buffers),
        )
    follows = {match.norms for match in matches if match.norms is not None}
    for match in matches:
        if not sharding.local(match.parameter).is_meta:
            continue
        if match.row.kept and match.entry.name not in follows:
            yield match.entry.name, _kept_on_meta(match.row.name)
        elif device is None or torch.device(device).type == "meta":
            yield match.entry.name, _needs_device()


def _row_problems(matches: Sequence[Match], seed: int) -> Iterator[tuple[str, FaninError]]:
    for match in matches:
        if match.row.kept:
            continue
        try:
            _require_memory(match.parameter)
            require_fit(match.row.scheme, match.site)
            require_range(match.row.scheme, match.site, match.parameter.dtype)
            if match.is_computed_from:
                require_holdable(match.row.scheme, match.site, match.entry, _own(match, matches), seed=seed)
        except FaninError as error:
            yield match.entry.name, error


def _own(match: Match, matches: Sequence[Match]) -> list[Own]:
    """The parameters that a parametrization brings with it and that the plan writes too."""
    weight = match.entry.weight
    assert weight is not None
    return [
        Own(other.entry, other.row.scheme, other.site)
        for other in matches
        if other.entry.weight is not None
        and other.entry.weight.part == "own"
        and (other.entry.weight.layer, other.entry.weight.tensor) == (weight.layer, weight.tensor)
        and not other.row.kept
    ]


def _require_memory(parameter: torch.Tensor) -> None:
    """Raise unless values can be put into a tensor's memory."""
    if not (parameter.is_floating_point() or parameter.is_complex()) or parameter.is_quantized:
        raise ApplyError(
            compose(
                f"a parameter of dtype {parameter.dtype}",
                "a floating-point or complex dtype",
                "schemes are laws of real numbers; integers and quantized values come from those",
                'plan.keep("…"), or initialize before the model is quantized',
            )
        )
    if hasattr(parameter, "ds_status"):
        raise ApplyError(
            compose(
                "a parameter that DeepSpeed has partitioned",
                "its whole memory",
                "what is written into the placeholder is lost",
                "with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0): fanin.apply(…)",
            )
        )
    if parameter.is_inference() and not torch.is_inference_mode_enabled():
        raise ApplyError(
            compose(
                "a parameter made in torch.inference_mode()",
                "a parameter made outside it",
                "torch lets nobody write into inference tensors later",
                "with torch.no_grad(): model = …",
            )
        )
    for piece, _ in sharding.pieces(parameter):
        if any(stride == 0 and size > 1 for stride, size in zip(piece.stride(), piece.shape, strict=True)):
            raise ApplyError(
                compose(
                    f"a parameter with strides {piece.stride()}, whose elements share memory",
                    "an element of memory for each",
                    "an expanded tensor cannot hold different values",
                    "parameter = torch.nn.Parameter(tensor.contiguous())",
                )
            )


def _meta_buffers(names: Sequence[str]) -> ApplyError:
    shown = ", ".join(names[:SHOWN]) + (f", … and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    why = "rotary tables and running statistics are computed by constructors; no plan knows them"
    instead = "with fanin.deferred(): model = …, which puts large parameters on meta and nothing else"
    if any("parametrizations." in name for name in names):
        why = "spectral normalization computes its vectors from the weight, which has no values yet"
        instead = "with fanin.deferred(larger_than=…): model = …, with more elements than that weight has"
    return ApplyError(compose(f"buffers on the meta device: {shown}", "buffers with their values", why, instead))


def _kept_on_meta(name: str) -> ApplyError:
    return ApplyError(
        compose(
            f"{name} is on the meta device and the plan keeps it",
            "a scheme, or a parameter that its constructor has filled",
            "on the meta device there is nothing to keep",
            f"plan.replace({name!r}, fanin.schemes.Normal(0.02)), or "
            "with fanin.deferred(larger_than=…): model = …, with more elements than it has",
        )
    )


def _needs_device() -> ApplyError:
    return ApplyError(
        compose(
            "a parameter on the meta device, and no device",
            "the device to make it on",
            "a meta parameter has a shape and no memory",
            'fanin.apply(plan, model, device="cpu")',
        )
    )
