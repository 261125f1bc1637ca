"""The hand-made expectations are complete, legal and without dead rules."""

from __future__ import annotations

import pytest

from expectations import FIELDS, all_names, differences, expected, matches, names, observe, records, shapes
from fanin.fans import Axes, Block
from fanin.graph import ParameterNode, Role

ROLES = {str(role) for role in Role}
SHORTHANDS = {"even_blocks", "head_blocks"}


def test_there_are_enough_models_from_every_source() -> None:
    sources = [name.split("/")[0] for name in names()]
    assert len(sources) >= 34
    assert {"timm", "torchvision", "transformers", "awkward"} == set(sources)


@pytest.mark.parametrize("name", names())
def test_every_parameter_is_covered_and_every_rule_used(name: str) -> None:
    parameters = list(shapes(name))
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
    for parameter, fields in expected(name).items():
        rows = [row for block in fields.get("blocks", {}).values() for row in block]
        assert len(rows) == len(set(rows))
        if rows:
            assert len(rows) in shapes(name)[parameter]
            assert sorted(rows) == list(range(len(rows)))


@pytest.mark.parametrize("name", names())
def test_every_parameter_that_is_named_exists(name: str) -> None:
    for fields in expected(name).values():
        assert {*fields.get("aliases", []), *filter(None, [fields.get("tamed_by")])} <= all_names(name)


def test_shorthands_are_written_out() -> None:
    weight = expected("timm/levit_128s")["stages.0.blocks.0.attn.qkv.linear.weight"]
    assert weight["blocks"]["k"][:18] == [*range(16, 32), 80, 81]
    assert expected("timm/swin_tiny_patch4_window7_224")["layers.0.blocks.0.attn.qkv.weight"]["blocks"]["v"][0] == 192
    assert expected("timm/resnet18")["layer2.1.conv2.weight"]["tamed_by"] == "layer2.1.bn2.weight"
    assert expected("timm/convnext_tiny")["stages.1.blocks.0.conv_dw.weight"]["groups"] == 192


def test_a_node_is_read_in_the_form_of_an_expectation() -> None:
    rows = Block("v", (range(2, 4), range(6, 8)), "attention_value")
    node = ParameterNode("w", (8, 4), Role.LINEAR, Axes(groups=2, blocks=(rows,)), aliases=("z", "b"))
    assert observe(node, "role") == "linear"
    assert observe(node, "groups") == 2
    assert observe(node, "in_axis") == [1]
    assert observe(node, "blocks") == {"v": [2, 3, 6, 7]}
    assert observe(node, "block_activations") == {"v": "attention_value"}
    assert observe(node, "aliases") == ["b", "z"]
    assert observe(node, "captured") is False


def test_differences_name_parameter_field_and_both_values() -> None:
    wanted = expected("awkward/CustomFunction")
    nodes = [_node(parameter, fields) for parameter, fields in wanted.items()]
    assert differences("awkward/CustomFunction", nodes) == []
    first = nodes[0]
    wrong = ParameterNode(first.name, first.shape, first.role, first.axes, activation="gelu", output=first.output)
    assert differences("awkward/CustomFunction", [wrong, *nodes[1:]]) == [
        ("first.weight", "activation", "relu", "gelu")
    ]
    assert differences("awkward/CustomFunction", nodes[1:]) == [("first.weight", "", "a node", "none")]


def _node(parameter: str, fields: dict[str, object]) -> ParameterNode:
    return ParameterNode(
        parameter,
        (8,),
        Role(str(fields["role"])),
        Axes(),
        activation=str(fields["activation"]),
        output=bool(fields.get("output", False)),
    )
