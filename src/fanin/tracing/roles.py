"""From uses to roles: what the model does with a parameter, read off the operation that consumes it."""

from __future__ import annotations

from collections.abc import Container

from fanin.graph import Role
from fanin.tracing.attention import SLOTS
from fanin.tracing.dataflow import activations_of, is_activation, routes
from fanin.tracing.layouts import is_transposed
from fanin.tracing.records import Operation, Space, Value
from fanin.tracing.uses import Use
from fanin.tracing.vocabulary import (
    ATTENTION,
    CONTRACTIONS,
    LOOKUPS,
    MOVES,
    NORMS,
    PAIRS,
    PRODUCTS,
    RECURRENCES,
    SUMS,
    VIEWS,
)
from fanin.tracing.walks import Walker

APART = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "unbind"})
"""Operations that take a tensor apart for good."""


def role_of(walker: Walker, use: Use) -> Role:
    """The role of a parameter in one use."""
    inner = _role_in_chain(use)
    if inner is not None:
        return inner
    operation, slot, target = use.operation, use.slot, use.operation.target
    if target in RECURRENCES:
        return Role.BIAS if len(use.value.shape) == 1 else Role.RECURRENT
    if target in ("embedding", "embedding_bag"):
        return Role.EMBEDDING if slot == "weight" else Role.OTHER
    if target in CONTRACTIONS:
        return _role_in_layer(operation, slot)
    if target in PAIRS:
        return _role_in_product(walker, use)
    if target in NORMS:
        scale = {"weight": Role.NORM_SCALE, "bias": Role.NORM_SHIFT, NORMS[target]: Role.TOKEN}
        return scale.get(slot, Role.OTHER)
    if target == ATTENTION:
        return Role.TOKEN if slot in SLOTS else Role.POSITION
    if target in SUMS or (target == "addcmul" and slot == "self"):
        return _role_in_sum(walker, use)
    if target in PRODUCTS or target == "addcmul":
        return _role_in_scaling(walker, use)
    if target in LOOKUPS and slot == "self":
        return Role.EMBEDDING
    if target in MOVES:
        return Role.OTHER if operation.output.id in walker.attention.scores else Role.TOKEN
    return Role.OTHER


def _role_in_chain(use: Use) -> Role | None:
    """The role of a parameter that shapes another one rather than being the weight itself."""
    for link in use.chain:
        target = link.operation.target
        if target == "_weight_norm" and link.slot == "g":
            return Role.OTHER
        if target in NORMS and link.slot in ("weight", "bias"):
            return Role.NORM_SCALE if link.slot == "weight" else Role.NORM_SHIFT
        if target in (*PRODUCTS, *SUMS):
            largest = max((value.numel for _, value in link.operation.inputs if value.space == Space.WEIGHT), default=0)
            if link.given.numel < largest:
                return Role.OTHER
    return None


def _role_in_layer(operation: Operation, slot: str) -> Role:
    layer = CONTRACTIONS[operation.target]
    if slot == layer.weight:
        return Role.CONV_TRANSPOSE if is_transposed(operation) else Role(layer.role)
    if slot == layer.bias:
        return Role.BIAS
    return Role.TOKEN if slot in layer.data else Role.OTHER


def _role_in_product(walker: Walker, use: Use) -> Role:
    operation = use.operation
    if use.slot == PAIRS[operation.target][2]:
        return Role.POSITION if _spreads(use) else Role.BIAS
    if any(reader.target in CONTRACTIONS and is_kernel(reader, operation) for reader in _readers(operation.output)):
        return Role.CONV
    if walker.attention.part(operation, use.value):
        return Role.TOKEN
    return Role.LINEAR


def _readers(value: Value, passing: Container[str] = MOVES) -> list[Operation]:
    """Who reads a value, through operations that only move it."""
    readers, waiting, steps = [], [value], 0
    while waiting and steps < 32:
        steps += 1
        for user in waiting.pop().users:
            if user.target in passing:
                waiting += user.outputs
            else:
                readers.append(user)
    return readers


def is_kernel(reader: Operation, maker: Operation) -> bool:
    """Whether a layer takes as its weight what a product of routing numbers and a parameter made."""
    weight = reader.of(CONTRACTIONS[reader.target].weight)
    steps = 0
    while weight is not None and weight.producer is not None and steps < 16:
        if weight.producer is maker:
            return True
        weight, steps = weight.producer.of("self"), steps + 1
    return False


def _role_in_sum(walker: Walker, use: Use) -> Role:
    operation = use.operation
    if operation.output.id in walker.attention.scores:
        return Role.POSITION
    if operation.index in walker.residuals.by_operation:
        return Role.TOKEN
    if any(link.operation.target == "embedding" for link in use.chain):
        return Role.POSITION
    if any(link.operation.target in LOOKUPS and routes(link.operation) for link in use.chain):
        return Role.BIAS
    if not _spreads(use) and any(_is_scaled_norm(walker, value) for value in activations_of(operation)):
        return Role.NORM_SHIFT
    stacked = _is_one_of_a_stack(walker, use) or _is_one_for_each_matrix(walker, use)
    if not _spreads(use) or stacked:
        return Role.BIAS
    return Role.OTHER if _falls_apart(operation) else Role.POSITION


def _falls_apart(operation: Operation) -> bool:
    """Whether a sum is taken apart at once, as the shifts and factors of a modulation, which are no places."""
    return any(reader.target in APART for reader in _readers(operation.output, passing=VIEWS))


def _is_one_of_a_stack(walker: Walker, use: Use) -> bool:
    """Whether one vector out of a table is added to what a weight puts out: biases of many layers in one parameter."""
    selected = any(link.operation.target in ("select", "unbind") for link in use.chain)
    return selected and not _differs(use.value) and bool(_layers_before(walker, use))


def _is_one_for_each_matrix(walker: Walker, use: Use) -> bool:
    """Whether what a stack of matrices puts out gets a vector for each of them, as the biases of experts."""
    products = [layer for layer in _layers_before(walker, use) if layer.target in PAIRS]
    stacks = [value for layer in products for _, value in layer.inputs if value.space == Space.WEIGHT]
    sizes = [size for size in use.value.shape[:-1] if size > 1]
    return len(sizes) == 1 and any(len(stack.shape) > 2 and stack.shape[0] == sizes[0] for stack in stacks)


def _layers_before(walker: Walker, use: Use) -> list[Operation]:
    """The layers whose output a parameter is added to."""
    behind = [before for value in activations_of(use.operation) for before in walker.flow.back_chain(value)]
    made = {value.producer.index for value in behind if value.producer is not None}
    return [operation for operation in walker.flow.weight_operations if operation.index in made]


def _spreads(use: Use) -> bool:
    """Whether it differs from place to place, and not only from channel to channel."""
    return any(map(_differs, (use.parameter, use.value)))


def _differs(value: Value) -> bool:
    return sum(size > 1 for size in value.shape) > 1


def _role_in_scaling(walker: Walker, use: Use) -> Role:
    others = [value for name, value in use.operation.inputs if is_activation(value) and name != "self"] + [
        value for name, value in use.operation.inputs if is_activation(value)
    ]
    index = use.operation.index
    inside = index in walker.norms and index in walker.norms[index].scaling
    if (inside or (others and _is_norm_output(walker, others[0]))) and not _scales_wholly(use):
        return Role.NORM_SCALE
    ends = walker.ahead(use.operation.output, through_products=True)
    if any(end.kind == "residual" and not end.passage.bent and not end.passage.gated for end in ends):
        return Role.LAYER_SCALE
    return Role.OTHER


def _scales_wholly(use: Use) -> bool:
    """One number for the whole signal: a scalar, not a norm's scale."""
    return use.parameter.numel == 1


def _is_norm_output(walker: Walker, value: Value) -> bool:
    """Whether a value is a normalization's, up to casts and moves."""
    for before in walker.flow.back_chain(value):
        producer = before.producer
        if producer is None:
            return False
        if producer.index in walker.norms:
            return walker.norms[producer.index].exit is before
        if producer.target in NORMS:
            return producer.of("weight") is None
        if producer.target not in MOVES:
            return False
    return False


def _is_scaled_norm(walker: Walker, value: Value) -> bool:
    """Whether a value is a normalization's, up to casts and its learned scale."""
    for before in walker.flow.back_chain(value):
        producer = before.producer
        if producer is None:
            return False
        if producer.index in walker.norms or producer.target in NORMS:
            return producer.index in walker.norms or producer.of("bias") is None
        if producer.target not in MOVES and producer.target not in PRODUCTS:
            return False
    return False
