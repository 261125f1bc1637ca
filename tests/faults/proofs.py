"""Proofs, by plain torch, that a model starts badly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from faults.cases import Case, Proof


def call(case: Case) -> Any:
    """The model's output on the case's inputs."""
    inputs = case.inputs
    if isinstance(inputs, dict):
        return case.model(**inputs)
    return case.model(*inputs) if isinstance(inputs, tuple) else case.model(inputs)


def first_tensor(output: Any) -> Tensor:
    """The output, or the first tensor in it."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output


def objective(case: Case) -> Tensor:
    """The case's loss, or a fixed random projection of the output, of unit gradient norm."""
    output = call(case)
    if case.loss is not None:
        return case.loss(output)
    tensor = first_tensor(output).float()
    direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5))
    return (tensor * direction).sum() / direction.norm()


def backward(case: Case) -> Tensor:
    """Fill the parameters' gradients; returns the loss."""
    case.model.zero_grad()
    loss = objective(case)
    loss.backward()
    return loss.detach()


def outputs_of(case: Case, *modules: str) -> list[Tensor]:
    """What the named modules put out, in that order."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found[name] = first_tensor(output).detach().float()

        return hook

    handles = [case.model.get_submodule(name).register_forward_hook(keep(name)) for name in modules]
    with torch.no_grad():
        call(case)
    for handle in handles:
        handle.remove()
    return [found[name] for name in modules]


def rms(tensor: Tensor) -> float:
    """``√E[x²]``."""
    return float(tensor.detach().double().square().mean().sqrt())


def cosine(tensor: Tensor) -> float:
    """The mean cosine between different samples of a batch."""
    flat = torch.nn.functional.normalize(tensor.detach().double().flatten(1), dim=1)
    similar = flat @ flat.T
    count = len(flat)
    return float((similar.sum() - similar.trace()) / (count * (count - 1)))


def parameter(case: Case, name: str) -> Tensor:
    """A parameter by its name, tied ones included."""
    return dict(case.model.named_parameters(remove_duplicate=False))[name]


def _gradient(case: Case, name: str) -> Tensor:
    gradient = parameter(case, name).grad
    return torch.zeros(()) if gradient is None else gradient


def units_alike(module: str) -> Proof:
    """All units of a layer compute the same, so that a wide layer is worth one unit."""

    def prove(case: Case) -> None:
        (output,) = outputs_of(case, module)
        units = output.flatten(0, -2) if output.dim() < 4 else output.transpose(1, -1).flatten(0, -2)
        spread = (units - units.mean(-1, keepdim=True)).abs().max()
        assert spread <= 1e-5 * units.abs().max(), "the units differ"

    return prove


def rows_repeat(name: str, distinct: int, axis: int = 0) -> Proof:
    """A weight has no more than so many different rows (slices along an axis)."""

    def prove(case: Case) -> None:
        weight = parameter(case, name)
        assert len(weight.transpose(0, axis).flatten(1).unique(dim=0)) <= distinct < weight.shape[axis]

    return prove


def same_values(*names: str) -> Proof:
    """Different parameters hold the same random numbers."""

    def prove(case: Case) -> None:
        first, *others = (parameter(case, name) for name in names)
        assert first.std() > 0
        assert all(torch.equal(first, other) and first is not other for other in others)

    return prove


def not_finite(case: Case) -> None:
    """The first loss is not a number, or infinite."""
    assert not torch.isfinite(backward(case))


def absurd(name: str, low: float = 1e-20, high: float = 1e4) -> Proof:
    """A parameter's values are of a size that no initialization draws."""

    def prove(case: Case) -> None:
        size = rms(parameter(case, name))
        assert size > high or size < low

    return prove


def outlier(name: str, sigmas: float = 50) -> Proof:
    """Single values lie far outside of the bulk."""

    def prove(case: Case) -> None:
        values = parameter(case, name).detach().double().flatten()
        bulk = values.abs().median() / 0.6745
        assert values.abs().max() > sigmas * bulk

    return prove


def no_gradient(*names: str) -> Proof:
    """The gradient of these parameters is exactly zero."""

    def prove(case: Case) -> None:
        backward(case)
        assert all(not _gradient(case, name).any() for name in names)

    return prove


def all_stuck(case: Case) -> None:
    """No parameter but biases of the last layer receives a gradient."""
    backward(case)
    moving = [name for name, _ in case.model.named_parameters() if _gradient(case, name).any()]
    assert len(moving) <= 1, moving


def grows(first: str, last: str, factor: float) -> Proof:
    """What one module puts out is many times larger than what an earlier one does."""

    def prove(case: Case) -> None:
        before, after = outputs_of(case, first, last)
        assert not math.isfinite(rms(after)) or rms(after) > factor * rms(before), (rms(before), rms(after))

    return prove


def shrinks(first: str, last: str, factor: float) -> Proof:
    """What one module puts out varies many times less between samples than what an earlier one does."""

    def prove(case: Case) -> None:
        before, after = outputs_of(case, first, last)
        assert rms(after - after.mean(0)) * factor < rms(before - before.mean(0))

    return prove


def gradient_ratio(first: str, last: str, factor: float) -> Proof:
    """The gradient of one weight is many times larger than another's."""

    def prove(case: Case) -> None:
        backward(case)
        large, small = rms(_gradient(case, first)), rms(_gradient(case, last))
        assert not math.isfinite(large) or large > factor * small, (large, small)

    return prove


def loss_above(floor: float) -> Proof:
    """The first loss is far over that of a uniform guess."""

    def prove(case: Case) -> None:
        with torch.no_grad():
            assert objective(case) > floor

    return prove


def share(module: str, condition: Callable[[Tensor], Tensor], least: float) -> Proof:
    """At least so large a share of what a module puts out meets a condition."""

    def prove(case: Case) -> None:
        (output,) = outputs_of(case, module)
        assert float(condition(output).float().mean()) >= least

    return prove


def alike(module: str, least: float) -> Proof:
    """Different samples come out nearly the same."""

    def prove(case: Case) -> None:
        (output,) = outputs_of(case, module)
        assert cosine(output) >= least, cosine(output)

    return prove


def positions_alike(module: str, least: float) -> Proof:
    """The positions of one sequence come out nearly the same, though they went in different."""

    def prove(case: Case) -> None:
        (output,) = outputs_of(case, module)
        assert min(cosine(sequence) for sequence in output) >= least
        assert max(cosine(sequence) for sequence in case.inputs) < 0.5

    return prove


def off(name: str, factor: float, right: float) -> Proof:
    """A weight's standard deviation is wrong by at least a factor, given the right one for its true fans."""

    def prove(case: Case) -> None:
        ratio = float(parameter(case, name).detach().std()) / right
        assert max(ratio, 1 / ratio) >= factor, ratio

    return prove


def both(*proofs: Proof) -> Proof:
    """All of several proofs."""

    def prove(case: Case) -> None:
        for proof in proofs:
            proof(case)

    return prove
