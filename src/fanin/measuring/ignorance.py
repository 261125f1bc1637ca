"""An output that knows nothing: zeros, and in the place of a distribution the standard one of its family."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
)
from torch.utils import _pytree as pytree

from fanin.signals import OF_STANDARD, OF_ZEROS

ALIKE = (("logits", "probs"), ("scale_tril", "covariance_matrix", "precision_matrix"))
"""Parameters of one family that say the same, and of which only one is given."""


def knowing_nothing(output: Any) -> tuple[Any, str]:
    """The output with zeros for its numbers and standard distributions for its distributions, and the words for it.

    The words are empty where there was nothing to replace: what the output holds cannot be seen.

    >>> neutral, words = knowing_nothing(torch.distributions.Normal(torch.ones(3), 1e-3))
    >>> neutral.loc.tolist(), neutral.scale.tolist(), words
    ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], 'the loss of a standard distribution')
    """
    found: set[str] = set()
    # What the model hands on of its inputs beside what it makes of them is a target, and not its to know.
    made = any(isinstance(item, torch.Tensor) and item.requires_grad for item in pytree.tree_leaves(output))

    def neutral(item: Any) -> Any:
        if isinstance(item, Distribution):
            found.add(OF_STANDARD)
            return _standard(item)
        if isinstance(item, torch.Tensor) and item.is_floating_point() and (item.requires_grad or not made):
            found.add(OF_ZEROS)
            return torch.zeros_like(item)
        return item

    replaced = pytree.tree_map(neutral, output)
    return replaced, OF_STANDARD if OF_STANDARD in found else OF_ZEROS if found else ""


def _standard(given: Any) -> Any:
    """The distribution of the same family whose parameters say nothing: 0 for a place, 1 for a size, even shares."""
    if isinstance(given, Independent):
        return Independent(_standard(given.base_dist), given.reinterpreted_batch_ndims)
    if isinstance(given, TransformedDistribution):
        return TransformedDistribution(_standard(given.base_dist), given.transforms)
    if isinstance(given, MixtureSameFamily):
        return MixtureSameFamily(_standard(given.mixture_distribution), _standard(given.component_distribution))
    wanted: dict[str, Any] = dict(type(given).arg_constraints)
    stored = {name: vars(given)[name] for name in wanted if name in vars(given)}
    for alike in ALIKE:  # what was not given is computed when it is first asked for, and kept
        for name in [name for name in alike if name in stored][1:]:
            del stored[name]
    return type(given)(**{name: _neutral(value, wanted[name]) for name, value in stored.items()})


def _neutral(value: torch.Tensor, constraint: Any) -> torch.Tensor:
    """Values within a constraint that say nothing.

    Raises:
        ValueError: none is known.
    """
    if constraint.event_dim == 2:  # a covariance, its inverse or its root
        neutral = torch.eye(value.shape[-1]).to(value).expand(value.shape)
        options = [(neutral, neutral)]
    else:
        even = torch.full_like(value, 1 / (value.shape[-1] if constraint.event_dim else 2))
        # What may be negative is a place, what may be over 1 a size.
        options = [(-torch.ones_like(value), torch.zeros_like(value)), (2 + even, torch.ones_like(value)), (even, even)]
    for tried, neutral in options:
        if bool(constraint.check(tried).all()):
            return neutral
    raise ValueError(f"no values that say nothing are known for {constraint}")
