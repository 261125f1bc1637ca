"""The hand-made expectations are complete, legal and without dead rules."""

from __future__ import annotations

import pytest

from expectations import FIELDS, expected, load, matches, names, records
from fanin.graph import Role

ROLES = {str(role) for role in Role}
SHORTHANDS = {"even_blocks", "head_blocks"}


def test_there_are_enough_models_from_every_source() -> None:
    sources = [name.split("/")[0] for name in names()]
    assert len(sources) >= 34
    assert {"timm", "torchvision", "transformers", "awkward"} == set(sources)


@pytest.mark.parametrize("name", names())
def test_every_parameter_is_covered_and_every_rule_used(name: str) -> None:
    model, _ = load(name)
    parameters = [parameter for parameter, _ in model.named_parameters()]
    rules = records()[name]["rules"]
    first = {p: next((i for i, rule in enumerate(rules) if matches(rule, p)), None) for p in parameters}
    assert [p for p, rule in first.items() if rule is None] == []
    assert [rules[i]["pattern"] for i in range(len(rules)) if i not in first.values()] == []


@pytest.mark.parametrize("name", names())
def test_every_field_is_one_that_a_node_has(name: str) -> None:
    for rule in records()[name]["rules"]:
        assert set(rule["expect"]) <= FIELDS | SHORTHANDS
        assert rule["expect"].get("role", "other") in ROLES


@pytest.mark.parametrize("name", names())
def test_blocks_lie_within_the_weight_and_do_not_overlap(name: str) -> None:
    model, _ = load(name)
    shapes = {parameter: tuple(value.shape) for parameter, value in model.named_parameters()}
    for parameter, fields in expected(name).items():
        rows = [row for block in fields.get("blocks", {}).values() for row in block]
        assert len(rows) == len(set(rows))
        if rows:
            assert len(rows) in shapes[parameter]
            assert sorted(rows) == list(range(len(rows)))
