"""The test room is stricter than the user's: no test may see the global random state change."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def global_random_state() -> str:
    """A digest of the global generators of torch, numpy and random."""
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global state is what is watched
    parts = (
        torch.get_rng_state().numpy().tobytes(),
        repr(numpy_state[0:1] + numpy_state[2:]).encode() + np.asarray(numpy_state[1]).tobytes(),
        repr(random.getstate()).encode(),
    )
    return hashlib.blake2b(b"".join(parts)).hexdigest()


@pytest.fixture
def untouched_random_state() -> Iterator[None]:
    """Fail the test if the global random state is not what it was."""
    before = global_random_state()
    yield
    assert global_random_state() == before, "the library changed the global random state"


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of the test's own, for inputs."""
    return torch.Generator().manual_seed(1234)
