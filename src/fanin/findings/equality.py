"""Values that should differ and do not: units, layers, shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fanin.diagnoses import Edit, Finding, Severity
from fanin.findings.evidence import DRAWN, FORMING, Evidence
from fanin.findings.garbage import zero_columns, zero_rows
from fanin.findings.registry import finding, register
from fanin.graph import ParameterNode, Role
from fanin.observations import ParameterSignal
from fanin.schemes import Normal

TOKENS = frozenset({Role.TOKEN, Role.POSITION, Role.OTHER})
"""The roles of learned vectors that are put in whole, as a set; a bias of one number an axis is none."""

SMALLEST, LARGEST = 0.01, 2.0
"""Between these lie the standard deviations that tables and tokens are usually drawn with: 0.02 to 1."""
UNCHOSEN = 0.1
"""Of eight experts, a router that chooses seven for each sample leaves an eighth of the gradients zero."""
NEARLY = 1e-5
"""Of their mean: differences that small are no draw, and grow in proportion to themselves."""


@register(
    "F101",
    "units that are equal",
    why="units with equal weights compute the same, so that a wide layer is worth one unit until something tells them "
    "apart",
    threshold="any two rows or columns equal in every bit, which random draws never are; an error from half of them "
    "on. Where other parameters or noise make the weight that is used, its units have to be equal too. Equal columns "
    "whose gradients differ are told apart by the first step: a warning, and a note where they read the model's "
    "inputs, as kernels repeated over colours do, or raise the resolution of one channel each; not where all weights "
    f"of a unit are one number. Values that are one number to within {NEARLY:g} of it are an error too. Learned tokens "
    "(latents, queries, prompts) only where their gradients are all the same too: where positions or targets tell "
    "them apart, they may start alike. Units of an output layer of zeros only where their gradients come in two or "
    "more sets of equally many that are the same, as those of the components of a mixture do. Positions that are one "
    "vector, and not zero, are a warning: the first steps tell them apart",
    remedy="draw every weight at random",
    source="classic: symmetry breaking (Rumelhart et al. 1986)",
)
def equal_units(evidence: Evidence) -> Iterator[Finding]:
    """Rows or columns that repeat."""
    yield from _equal_tokens(evidence)
    yield from _equal_outputs(evidence)
    for node, signal in evidence.drawn():
        if not signal.rms or signal.non_finite or zero_rows(node, signal) or zero_columns(node, signal):
            continue
        if signal.repeats > 1 or _side_shards(node, signal):
            continue
        if FORMING.intersection(node.reparametrized) or signal.effective_duplicates == 0:
            continue
        if not signal.constant and signal.std <= NEARLY * abs(signal.mean) and _tells_apart(node, signal):
            words = f"all values are one number, {signal.mean:.3g}, to within {signal.std / abs(signal.mean):.1g} of it"
            yield finding("F101", Severity.ERROR, node.name, words, edits=evidence.redraw(node.name))
            continue
        meant = _shuffled(evidence, signal) or _slices_repeat(signal)
        rows = 0.0 if meant else max(signal.duplicate_rows - _zero_blocks(node, signal), 0.0)
        share = max(rows, signal.duplicate_columns)
        if share < 1e-9 or not _tells_apart(node, signal):
            continue
        kind = "rows (units)" if rows >= signal.duplicate_columns else "columns (inputs)"
        words = "all values are one number" if signal.constant else f"{share:.0%} of the {kind} equal another"
        severity = Severity.ERROR if share >= 0.5 or signal.constant else Severity.WARNING
        edits = evidence.redraw_alike(node.name)
        if not rows and _part(node, signal):
            words += ", with inputs behind them that differ, so that the first step tells them apart"
            meant = node.weight_depth <= 1 or _raises(node, signal)
            severity, edits = (Severity.NOTE, ()) if meant else (Severity.WARNING, edits)
        elif rows and signal.grad_duplicate_rows:
            words += "; their gradients are equal too, so they stay equal"
        yield finding("F101", severity, node.name, words, edits=edits)


def _part(node: ParameterNode, signal: ParameterSignal) -> bool:
    """Whether the inputs behind equal columns differ, as the colours before a repeated kernel do.

    The columns of a table are its tokens, which no input tells apart but the one that names them; and of units whose
    weights are one number each, all see the same sum.
    """
    if node.axes.one_hot or signal.constant_rows:
        return False
    # Behind a head of zeros no gradient tells; the model's own inputs differ.
    return signal.grad_duplicate_columns == 0 or (signal.grad_rms == 0 and node.weight_depth == 1)


def _raises(node: ParameterNode, signal: ParameterSignal) -> bool:
    """Whether one kernel with a form, such as the bilinear one, raises the resolution of each channel by itself."""
    return node.axes.transposed and node.axes.groups == node.shape[0] and not signal.constant_rows


def _equal_tokens(evidence: Evidence) -> Iterator[Finding]:
    """Learned tokens that are all one vector, and that no gradient will ever tell apart; or positions that are."""
    for node, signal in evidence.parameters():
        # What reads them is used to their size, if it is one that anyone draws.
        drawn = SMALLEST <= signal.rms <= LARGEST and not node.reparametrized
        if node.role in TOKENS and signal.equal_vectors and signal.grad_equal_vectors and not signal.non_finite:
            seen = f"its {node.shape[-2]} vectors are one, and so are their gradients: they stay equal"
            edits = (Edit(node.name, Normal(signal.rms)),) if drawn else evidence.redraw(node.name)
            yield finding("F101", Severity.ERROR, node.name, seen, edits=edits)
        elif node.role is Role.POSITION and signal.equal_vectors and signal.rms and not signal.non_finite:
            seen = f"its {node.shape[-2]} positions are one vector: until they part, no place can be told from another"
            edits = (Edit(node.name, Normal(signal.rms)),) if drawn else evidence.redraw(node.name)
            yield finding("F101", Severity.WARNING, node.name, seen, edits=edits)


def _equal_outputs(evidence: Evidence) -> Iterator[Finding]:
    """Output layers of zeros whose rows are several sets of alike ones, as the components of a mixture are.

    One such set alone says little: of classes that the batch does not hold, all rows have the same gradient.
    """
    heads = [(node, fact) for node, fact in evidence.parameters() if node.output and node.is_weight and not fact.rms]
    for node, fact in heads:
        size = fact.grad_group_size
        if size and sum(other.grad_groups for _, other in heads if other.grad_group_size == size) > 1:
            seen = f"all are zero, and the gradients of {size} at a time are equal: they stay equal"
            yield finding("F101", Severity.ERROR, node.name, seen, edits=evidence.redraw(node.name))


def _zero_blocks(node: ParameterNode, signal: ParameterSignal) -> float:
    """The share of the rows that equal another because a block of a packed weight starts at zero, as queries may."""
    zero = {block.name for block in signal.blocks if block.zero}
    rows = sum(len(part) for block in node.axes.blocks if block.name in zero for part in block.rows)
    return (rows - 1) / node.shape[0] if rows and not node.feedback else 0.0


def _slices_repeat(signal: ParameterSignal) -> bool:
    return signal.duplicate_slices > 0


def _tells_apart(node: ParameterNode, signal: ParameterSignal) -> bool:
    """Whether rows are long enough that chance makes no two equal: 2⁻²⁴ a value in float32, 2⁻⁸ in bfloat16."""
    rows = max(node.shape[0], 1) if node.shape else 1
    length = signal.elements / rows
    return rows > 1 and (length >= 8 or (length >= 2 and signal.dtype in ("float32", "float64")))


def _shuffled(evidence: Evidence, signal: ParameterSignal) -> bool:
    """Whether a pixel shuffle follows, before which equal rows are meant (ICNR)."""
    layers = evidence.signals.layers
    readers = evidence.signals.readers(signal.name)
    return any(
        "pixel_shuffle" in layer.target for reader in readers for layer in layers[reader.index + 1 : reader.index + 4]
    )


SPARSE = 0.9
"""Identity matrices and delta kernels, which are written and not drawn, may be the same in many layers."""


@register(
    "F102",
    "layers that are equal",
    why="layers that start as copies compute the same and have to be told apart by training; it shows that one was "
    "cloned, or that a seed was set for each",
    threshold="two weights of the same values bit for bit that are not tied; a module that gets no gradient and copies "
    "a trained one of another name, as a target network does, is meant. A note of experts side by side that are each "
    f"chosen for some samples alone: over {UNCHOSEN:.0%} of the gradient of what each puts out is exactly zero, or all "
    "are not given as many",
    remedy="draw each layer by itself; tie them if they are meant to be one",
    source="pytorch/pytorch#86274",
)
def equal_layers(evidence: Evidence) -> Iterator[Finding]:
    """Different parameters that hold the same random values."""
    for twins in evidence.signals.twins:
        group = [name for name in twins if not evidence.is_copy(name)]
        nodes = [evidence.graph[name] for name in group]
        if len(group) < 2 or any(node.frozen for node in nodes) or not all(node.role in DRAWN for node in nodes):
            continue
        if evidence.signals.parameter(group[0]).zero > SPARSE:
            continue
        first, *others = group
        seen = f"the same values as {others[0]}" + (f" and {len(others) - 1} more" if len(others) > 1 else "")
        if _routed(evidence, group):
            seen += ": experts that are each given samples of their own, which tell them apart"
            yield finding("F102", Severity.NOTE, first, seen, places=others)
            continue
        yield finding("F102", Severity.WARNING, first, seen, edits=evidence.redraw(*group), places=others)


def _routed(evidence: Evidence, group: Sequence[str]) -> bool:
    """Whether weights are of modules side by side, of which each learns from a share of the samples alone.

    So upcycled experts start (Komatsuzaki et al. 2023): a router chooses among them, by their inputs or their outputs.
    """
    split = [name.split(".") for name in group]
    place = next((index for index, parts in enumerate(zip(*split, strict=False)) if len(set(parts)) > 1), 0)
    ends = []
    for parts in split:
        root = ".".join(parts[: place + 1])
        inside = [layer for layer in evidence.signals.layers if f"{layer.module}.".startswith(f"{root}.")]
        ends += inside[-1:]
    beside = len(ends) == len(group) and len({layer.weight_depth for layer in ends}) == 1
    chosen = all((layer.grad_zero or 0.0) > UNCHOSEN for layer in ends)
    return beside and (chosen or len({layer.shape[:1] for layer in ends}) > 1)


@register(
    "F103",
    "shards that are equal",
    why="the tensor is one block several times: every rank, expert or head drew the same",
    threshold="the same block at least twice over, bit for bit; a warning where the inputs behind the blocks differ",
    remedy="draw the whole tensor by one seed, or let the seed depend on the place in it",
    source="pytorch/pytorch#180088",
)
def equal_shards(evidence: Evidence) -> Iterator[Finding]:
    """A tensor that is one block, repeated."""
    for node, signal in evidence.drawn():
        if signal.constant or signal.non_finite:
            continue
        if signal.repeats > 1 and signal.zero <= SPARSE and not _shuffled(evidence, signal):
            seen = f"the same block {signal.repeats} times along the first axis"
        elif signal.duplicate_slices:
            seen = f"{signal.duplicate_slices:.0%} of the stacked weights equal another"
        elif _side_shards(node, signal):
            seen = f"the same block {signal.side_repeats} times along an axis that is not its first"
        else:
            continue
        of_inputs = signal.repeats == 1 or 0 in node.axes.in_axis
        apart = of_inputs and not signal.duplicate_slices and _part(node, signal)
        seen += ", with inputs behind them that differ, so that the first step tells them apart" if apart else ""
        severity = Severity.WARNING if apart else Severity.ERROR
        yield finding("F103", severity, node.name, seen, edits=evidence.redraw_alike(node.name))


def _side_shards(node: ParameterNode, signal: ParameterSignal) -> bool:
    """Whether blocks repeat along inputs or outputs that are not the first axis, and by no intention.

    Kernels that are repeated over the model's own inputs are, as over several frames, and identities in a row.
    """
    repeated = signal.side_repeats > 1 and signal.zero <= SPARSE
    return repeated and not (node.weight_depth <= 1 and _part(node, signal))
