"""The watch over one forward run: every torch function passes through it, and some are measured."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fanin.measuring.attention import Entropy, entropy_of_fused, entropy_of_scores
from fanin.measuring.counted import counted_by
from fanin.measuring.parameters import duplicate_share, local
from fanin.measuring.statistics import (
    cosine_between,
    cosine_within,
    real_parts,
    sample_units,
    scale_of,
    units_of,
    zero_share,
)
from fanin.measuring.trails import (
    RESHAPES,
    Trail,
    is_branch,
    leave,
    made_by,
    moved_axis,
    tensors_in,
    trail_of,
    unit_axis,
)
from fanin.measuring.vocabulary import CHANNELS_FIRST, DROPOUTS, FEATURES_LAST, KINDS, name_of, plain
from fanin.observations import Kind, LayerSignal
from fanin.tracing import compatibility

REACH = 64.0
"""What is not measured otherwise is measured in float16 from a 64th of the range's end on: what is farther off no
rule asks about."""

Selector = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Effective:
    """A weight that is computed from parameters, as the layer uses it.

    Args:
        std: of all its values.
        duplicates: the share of units along one axis that equal an earlier one, of the axis with the most.
    """

    std: float
    duplicates: float

    @classmethod
    def of(cls, weight: torch.Tensor) -> Effective:
        """Measure one."""
        # Not Bessel's: of one value it would be no number.
        std = (weight if weight.is_complex() else weight.float()).std(correction=0).item()
        parts = real_parts(local(weight))
        return cls(std, max(duplicate_share(parts, (axis,)) for axis in range(weight.ndim)))


@dataclass(slots=True)
class _Sum:
    """The two sides of a sum, as they were before it: an addition in place destroys one."""

    branch: Trail
    stream: Trail
    branch_rms: float
    stream_rms: float


@dataclass(frozen=True, slots=True)
class _Beside:
    """A signal and the constant that is added to it, as a table of sinusoids is to tokens, before the sum."""

    constant: str
    constant_rms: float
    signal_rms: float


class Watch(TorchFunctionMode):
    """Measures what passes while it is active.

    Args:
        samples: the size of the batch, where it is known.
        selected: which modules to measure, by path.
    """

    def __init__(self, samples: int | None, selected: Selector) -> None:
        super().__init__()
        self.signals: list[LayerSignal] = []
        self.gradients: dict[int, dict[str, Any]] = {}
        self.effective: dict[str, Effective] = {}
        self.path: list[str] = [""]
        self.shared: set[int] = set()
        self.buffers: dict[int, str] = {}
        self._samples = samples
        self._selected = selected
        self._streams = 0
        self._towers = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if func is functional.multi_head_attention_forward:
            with self:
                return _opened(func)(*args, **kwargs)
        if name in DROPOUTS:
            return args[0] if args else kwargs["input"]
        if name == "scaled_dot_product_attention":
            args, kwargs = _without_dropout(args, kwargs)
        trails = [trail for item in tensors_in((*args, *kwargs.values())) if (trail := trail_of(item)) is not None]
        if not trails:
            return func(*args, **kwargs)
        self._refuse_writes(name, args)
        kind = KINDS.get(name)
        before = self._sides(args) if kind is Kind.SUM else None
        beside = self._constant(args) if kind is Kind.SUM else None
        counted = counted_by(name, args, kwargs)
        first = len(self.signals)
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor | tuple | list):
            self._follow(name, kind, trails, before, result, args, kwargs, beside)
        if counted is not None and first < len(self.signals):
            spread, shift = counted.spread, counted.shift
            self.signals[-1] = replace(self.signals[-1], counted_spread=spread, counted_shift=shift)
        return result

    def _refuse_writes(self, name: str, args: tuple[Any, ...]) -> None:
        """Only the model's own parameters are shared with the run, so nothing may write into them."""
        if not (name.endswith("_") and name[0] != "_" and args and isinstance(args[0], torch.Tensor)):
            return
        if name not in ("requires_grad_", "detach_") and args[0].untyped_storage().data_ptr() in self.shared:
            raise RuntimeError(f"the model writes into one of its parameters ({name}) in its forward")

    def _sides(self, args: tuple[Any, ...]) -> _Sum | None:
        if len(args) < 2 or not all(isinstance(item, torch.Tensor) for item in args[:2]):
            return None
        first, second = trail_of(args[0]), trail_of(args[1])
        if first is None or second is None or first.parameter or second.parameter or args[0].shape != args[1].shape:
            return None
        pairs = ((first, second, args[0], args[1]), (second, first, args[1], args[0]))
        # The deeper side is the likelier branch.
        for branch, stream, added, kept in sorted(pairs, key=lambda pair: -pair[0].depth):
            if is_branch(branch, stream):
                with torch.no_grad():
                    return _Sum(branch, stream, scale_of(added).rms, scale_of(kept).rms)
        return None

    def _constant(self, args: tuple[Any, ...]) -> _Beside | None:
        """A constant that differs from place to place, and the first weight's output to which it is added."""
        if len(args) < 2 or not all(isinstance(item, torch.Tensor) and item.is_floating_point() for item in args[:2]):
            return None
        for signal, constant in (args[:2], args[1::-1]):
            trail = trail_of(signal)
            if trail is None or trail_of(constant) is not None or trail.parameter or trail.depth != 1 or trail.scores:
                continue
            places = sum(size > 1 for size in constant.shape) > 1 and constant.shape[-1] == signal.shape[-1]
            if places and not (compatibility.is_mapped(signal) or compatibility.is_mapped(constant)):
                name = self.buffers.get(constant.untyped_storage().data_ptr(), "")
                with torch.no_grad():
                    return _Beside(name, scale_of(constant).rms, scale_of(signal).rms)
        return None

    def _follow(
        self,
        name: str,
        kind: Kind | None,
        trails: list[Trail],
        before: _Sum | None,
        result: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        beside: _Beside | None = None,
    ) -> None:
        """Leave the trail on what came out, and measure it."""
        outputs = [item for item in tensors_in((result,)) if item.is_floating_point() or item.is_complex()]
        # Inside of torch.vmap there is no memory to look at.
        if not outputs or compatibility.is_mapped(outputs[0]):
            return
        trail = _continued(name, kind, trails, args)
        if trail.parameter:
            for output in outputs:
                leave(output, trail)
            return
        self.enter_tower(trail)
        kind = _kind_of(kind, name, trails, outputs[0]) or (Kind.OTHER if beside is not None else None)
        trail.scores = _are_scores(kind, trails, trail, args, outputs[0])
        if kind is None and _near_the_end(name, trail, outputs[0]):
            kind = Kind.OTHER
        if before is not None:
            self._enter_stream(trail, before)
        for output in outputs:
            leave(output, trail)
        if kind is Kind.WEIGHT:
            self._note_effective(args, kwargs)
        # Of complex signals the way is followed; their units and slopes are those of no real activation.
        measured = bool(outputs[0].numel()) and not outputs[0].is_complex() and self._selected(self.path[-1])
        if kind is not None and measured:
            entropy = self._entropy(name, args, kwargs) if kind is Kind.ATTENTION else None
            self.record(outputs[0], plain(name), kind, trail, before, entropy, beside)
            if kind is Kind.RECURRENT:
                self.signals[-1] = replace(self.signals[-1], steps=_steps(args))

    def enter_tower(self, trail: Trail) -> None:
        """Number the way that a trail goes on, which begins where a weight is the first."""
        deepest = max(trail.parents, key=lambda parent: (parent.depth, -(parent.tower or 0)), default=None)
        if deepest is not None and deepest.depth:
            trail.tower = deepest.tower
        elif trail.depth:
            trail.tower, self._towers = self._towers, self._towers + 1

    def _enter_stream(self, trail: Trail, before: _Sum) -> None:
        stream = before.stream
        if stream.stream is None:
            trail.stream, trail.stream_depth, trail.stream_start = self._streams, 1, before.stream_rms
            self._streams += 1
        else:
            trail.stream, trail.stream_start = stream.stream, stream.stream_start
            trail.stream_depth = stream.stream_depth + 1

    def _note_effective(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Of a weight that was computed from parameters, as under weight normalization."""
        for item in tensors_in((*args, *kwargs.values())):
            trail = trail_of(item)
            if trail is not None and trail.parameter and trail.parents and item.ndim > 1:
                self.effective.update(dict.fromkeys(trail.weights, Effective.of(item.detach())))

    def _entropy(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entropy | None:
        with torch.no_grad(), torch.autocast(_device_type(args, kwargs), enabled=False):
            if name == "scaled_dot_product_attention":
                return entropy_of_fused(*args, **kwargs)
            scores = args[0] if args else kwargs["input"]
            axis = kwargs.get("dim", args[1] if len(args) > 1 else -1)
            if axis in (-1, scores.ndim - 1):
                return entropy_of_scores(scores)
            trail = trail_of(scores)
            return entropy_of_scores(scores.movedim(axis, -1)) if trail is not None and trail.scores else None

    def record(
        self,
        output: torch.Tensor,
        target: str,
        kind: Kind,
        trail: Trail,
        before: _Sum | None = None,
        entropy: Entropy | None = None,
        beside: _Beside | None = None,
    ) -> None:
        """Measure one output now, and its gradient when it comes."""
        index = len(self.signals)
        signal = LayerSignal(index, target, self.path[-1], target, kind, tuple(output.shape), _dtype(output))
        signal = replace(signal, weights=trail.weights, weight_depth=trail.depth, tower=trail.tower)
        signal = replace(signal, scores=trail.scores, behind=made_by(trail) if kind is Kind.ACTIVATION else ())
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            signal = self._with_statistics(signal, output.detach(), trail)
        if before is not None:
            signal = replace(
                signal,
                stream=trail.stream,
                stream_depth=trail.stream_depth,
                stream_start=trail.stream_start,
                branch_rms=before.branch_rms,
                stream_rms=before.stream_rms,
            )
        if entropy is not None:
            signal = replace(
                signal,
                entropy=entropy.mean,
                entropy_low=entropy.low,
                entropy_high=entropy.high,
                keys=entropy.keys,
                score_std=entropy.score_std,
            )
        if beside is not None:
            parts = (beside.constant, beside.constant_rms, beside.signal_rms)
            signal = replace(signal, constant=parts[0], constant_rms=parts[1], signal_rms=parts[2])
        self.signals.append(signal)
        if output.requires_grad:
            on_gradient: Callable[..., Any] = output.register_hook
            on_gradient(partial(self._note_gradient, index))

    def _with_statistics(self, signal: LayerSignal, output: torch.Tensor, trail: Trail) -> LayerSignal:
        scale = scale_of(output)
        if output.ndim == 0:
            return replace(signal, mean=scale.mean, rms=scale.rms, max=scale.max, non_finite=scale.non_finite)
        axis = unit_axis(trail, output.ndim)
        sample = sample_units(output, axis)
        units = units_of(sample, signal.target)
        batched = output.shape[0] == self._samples and axis != 0
        sequence = batched and output.ndim == 3 and axis == 2
        return replace(
            signal,
            mean=scale.mean,
            rms=scale.rms,
            max=scale.max,
            non_finite=scale.non_finite,
            # One vector alone differs from no other, and this says nothing of the layer.
            offset=units.offset * scale.rms if units.seen > 1 else None,
            varying=units.varying * scale.rms if units.seen > 1 else None,
            spread=units.spread,
            zero=units.zero,
            saturated=units.saturated,
            stuck=units.stuck,
            dead=units.dead if signal.kind is Kind.ACTIVATION else None,
            seen=units.seen,
            sample_cosine=cosine_between(sample) if batched else None,
            position_cosine=cosine_within(sample) if sequence else None,
        )

    def _note_gradient(self, index: int, gradient: torch.Tensor) -> None:
        with torch.no_grad():
            scale = scale_of(gradient)
            self.gradients[index] = {
                "grad_rms": scale.rms,
                "grad_max": scale.max,
                "grad_zero": zero_share(gradient),
                "grad_non_finite": scale.non_finite,
            }


def _continued(name: str, kind: Kind | None, trails: list[Trail], args: tuple[Any, ...]) -> Trail:
    """The trail of a function's result."""
    weights = tuple(dict.fromkeys(weight for trail in trails if trail.parameter for weight in trail.weights))
    signals = [trail for trail in trails if not trail.parameter]
    if not signals and kind not in (Kind.EMBEDDING, Kind.WEIGHT, Kind.RECURRENT):
        return Trail(tuple(trails), weights=weights, parameter=True)
    heavy = bool(weights) and kind in (Kind.WEIGHT, Kind.EMBEDDING, Kind.RECURRENT)
    depth = max((trail.depth for trail in signals), default=0) + heavy
    first = next(iter(tensors_in(args)), None)
    ndim = first.ndim if first is not None else 0
    axis = signals[0].axis if signals else None
    if name in RESHAPES:
        axis = moved_axis(name, args, axis, ndim)
    elif name in CHANNELS_FIRST:
        axis = 1
    elif name in FEATURES_LAST or kind is Kind.EMBEDDING:
        axis = None
    trail = Trail(tuple(trails), depth, axis, weights)
    if not heavy and len(signals) == 1:
        one = signals[0]
        trail.stream, trail.stream_depth, trail.stream_start = one.stream, one.stream_depth, one.stream_start
    return trail


def _kind_of(kind: Kind | None, name: str, trails: list[Trail], output: torch.Tensor) -> Kind | None:
    """The kind that the arguments make of it: a matrix product of two signals contracts no weight."""
    from_weights = any(trail.parameter for trail in trails)
    if kind is Kind.WEIGHT and not from_weights:
        return Kind.PRODUCT
    over_classes = name != "scaled_dot_product_attention" and not any(trail.scores for trail in trails)
    if kind is Kind.ATTENTION and output.ndim < 3 and over_classes:
        return Kind.OTHER
    if kind is Kind.PRODUCT and (len(trails) < 2 or ("div" in name and not from_weights)):
        return None  # of one signal by another, a quotient is a norm written by hand: its parts are measured
    if kind is Kind.PRODUCT and from_weights:
        return Kind.OTHER
    if kind is Kind.SUM and len(trails) < 2:
        return None
    return kind


def _are_scores(
    kind: Kind | None, trails: list[Trail], trail: Trail, args: tuple[Any, ...], output: torch.Tensor
) -> bool:
    if kind in (Kind.WEIGHT, Kind.EMBEDDING, Kind.RECURRENT):
        return output.ndim > 1 and output.shape[unit_axis(trail, output.ndim)] == 1
    if kind is Kind.PRODUCT or (kind is Kind.SUM and _is_of_pairs(args, output)):
        return True
    return kind is not Kind.ATTENTION and any(one.scores for one in trails)


def _is_of_pairs(args: tuple[Any, ...], output: torch.Tensor) -> bool:
    """Whether a sum of two signals has a number for each pair of their places, as the scores between nodes."""
    sides = [item for item in args[:2] if isinstance(item, torch.Tensor)]
    signals = [side for side in sides if (trail := trail_of(side)) is not None and not trail.parameter]
    return len(signals) == 2 and all(side.numel() < output.numel() for side in signals)


def _near_the_end(name: str, trail: Trail, output: torch.Tensor) -> bool:
    """Whether an operation of float16 comes near the end of its range, as masks and masked scores do on purpose.

    What is not finite shows in what follows, or, as the logits of classes that are left out, is meant.
    """
    if output.dtype is not torch.float16 or not trail.depth or not output.numel():
        return False
    if trail.scores or name in RESHAPES or name.strip("_") in ("masked_fill", "where"):
        return False
    low, high = torch.aminmax(output.detach())
    largest = float(max(-low, high))
    return math.isfinite(largest) and largest * REACH > torch.finfo(torch.float16).max


def _without_dropout(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(args) > 4:
        return (*args[:4], 0.0, *args[5:]), kwargs
    return args, {**kwargs, "dropout_p": 0.0}


def _steps(args: tuple[Any, ...]) -> int | None:
    """Over how many steps one of torch's recurrences runs; a cell, which takes a matrix, makes one of many.

    Packed sequences come as the rows of a matrix, and how many of them go on at each step.
    """
    data, second = args[:2]
    if data.ndim == 3:
        return int(data.shape[1 if args[-1] is True else 0])
    return len(second) if isinstance(second, torch.Tensor) and second.ndim == 1 else None


def _device_type(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return next((item.device.type for item in tensors_in((*args, *kwargs.values()))), "cpu")


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _opened(function: Any) -> Any:
    """A function of torch.nn.functional that does not hand itself over to the mode again, only what it calls."""
    outside = {
        **function.__globals__,
        "has_torch_function": _never,
        "has_torch_function_unary": _never,
        "has_torch_function_variadic": _never,
    }
    opened = types.FunctionType(function.__code__, outside, function.__name__, function.__defaults__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


def _never(*_: Any) -> bool:
    return False
