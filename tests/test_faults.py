"""Every fault of the corpus is one, by measurements in plain torch."""

from __future__ import annotations

import pytest

from faults import FAULTS, Fault


@pytest.mark.parametrize("fault", FAULTS.values(), ids=lambda fault: fault.name)
def test_fault_is_one(fault: Fault) -> None:
    fault.prove(fault.make())


def test_corpus_is_large_and_says_where_it_comes_from() -> None:
    assert len(FAULTS) >= 60
    threads = [fault for fault in FAULTS.values() if "#" in fault.origin]
    assert len(threads) >= 25
    assert all(fault.codes and fault.places and fault.origin for fault in FAULTS.values())
