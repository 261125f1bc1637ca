"""The global random state, seeded for a while and then put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random for what runs inside, and leave them as they were.

    A user's model, data and dropout draw from these; the starts of the parameters do not. Only the CPU's generator is
    touched: ``torch.manual_seed`` would also reseed every accelerator.
    """
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global state is what user code draws from
    random.seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
