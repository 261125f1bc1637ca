"""Recipes plan, parameter for parameter, the std that installed libraries draw, or depart as they say.

Tolerance: six standard errors of the pooled values. Power: a std that is √2 off lies over 20 standard errors away
for every pool of weights or tables, except where a whole model has too few of a kind.
"""

from __future__ import annotations

import pytest

from fanin.recipes.departures import DEPARTURES
from parity import CASES, Case, measure

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("case", CASES, ids=[f"{case.name} {index}" for index, case in enumerate(CASES)])
def test_library_draws_what_the_recipe_plans(case: Case) -> None:
    pools = measure(case)
    wrong = [f"{pool.names[0]}: {pool.problem}" for pool in pools if pool.problem]
    assert not wrong
    tables = [pool for pool in pools if pool.is_table and pool.std]
    assert sum(pool.power > 20 for pool in tables) >= 0.6 * len(tables)
    elements = sum(pool.count for pool in tables)
    assert sum(pool.count for pool in tables if pool.power > 20) > 0.98 * elements


def test_a_wrong_gain_is_seen() -> None:
    """The proof that the proof can fail: with √2 on every planned std, every large pool has a problem."""
    for pool in measure(CASES[0]):
        if pool.is_table and pool.std:
            pool.std *= 2**0.5
            assert pool.problem


def test_every_departure_from_an_installed_library_is_met() -> None:
    """Each is measured by a case; one that covers nothing has no place in the table."""
    cases = {(case.recipe, case.library) for case in CASES}
    assert {(entry.recipe, entry.library) for entry in DEPARTURES if entry.installed} <= cases
    met = {pool.departure for case in CASES for pool in measure(case)}
    assert {entry for entry in DEPARTURES if entry.installed} <= met
