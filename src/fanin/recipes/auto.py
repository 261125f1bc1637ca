"""The automatic recipe: the field's rules of thumb, made precise by what the graph knows of each parameter.

Rules were chosen by small races; `docs/decisions.md` keeps the record, and says how small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fanin import gains
from fanin.graph import WEIGHTS, Graph, ParameterNode, Role
from fanin.plans import Plan
from fanin.recipes.branches import Branches, in_a_row
from fanin.recipes.classic import beside_weights, for_each_block
from fanin.recipes.following import following, frequency
from fanin.recipes.kinks import Kinks
from fanin.recipes.plain import DEEP, Plain
from fanin.recipes.products import Products
from fanin.recipes.questions import (
    activations_after,
    added_to_scores,
    added_to_signals,
    bounded,
    ends_in_product,
    enters_scores,
    factor_activations,
    hands_on,
    is_gate,
    is_normed,
    is_tied_table,
    makes_exponent,
    multiplies,
    squashes,
)
from fanin.recipes.rectifiers import slope_behind
from fanin.recipes.registry import register
from fanin.recipes.rules import Decision
from fanin.recipes.state_gates import StateGates
from fanin.recipes.states import state_power
from fanin.schemes import (
    Constant,
    Keep,
    LooksLinear,
    Normal,
    Ones,
    Orthogonal,
    ScaledOrthogonal,
    Scheme,
    VarianceScaling,
    Zeros,
    xavier_normal,
)
from fanin.schemes.base import matrix_of

HEAD = 1.0
"""Gain of an output layer: logits of unit variance cost half a nat at first; smaller ones lost most races."""
LONE_HEAD = 0.3
"""The same where it is the only weight: there is no layer below that needs its gradient."""
PLACES = 0.5
"""Size of positions over that of what they are added to: at 0.02 attention hardly sees them, at 1 they cost a language
model a tenth of a nat."""

MOST_AVERAGED = 64
"""Numbers averaged, up to which a weight makes up for it: 2.8 times as large at most, in case they are all alike."""

MANY = 12
"""Branches that end in batch norms, from which on these start smaller. With six the races are even."""

WIDE = 512
"""The smaller side of a matrix, beyond which it is Gaussian in any net: orthogonal ones were raced at up to 64, their
cost grows with its square, and what they do away with, fluctuations of 1/width in every layer, is small there."""


@register("auto", sources=("he2015", "saxe2014", "balduzzi2017"))
def auto(graph: Graph) -> Plan:
    """For every parameter by its role: what follows, true fans, residual depth, recurrence, plain depth."""
    nodes = list(graph)
    normed = any(is_normed(node) for node in nodes)
    learn = sum(node.is_weight or node.role == Role.EMBEDDING for node in nodes)
    head = HEAD if learn > 1 else LONE_HEAD
    gated_state = any(map(squashes, {name for node in nodes if node.feedback for name in activations_after(node)}))
    driven = any(node.feeds_state for node in nodes)
    bare = not normed and multiplies(nodes)
    plain = Plain.of(graph)
    chooser = _Chooser(
        plain=plain,
        head=head,
        bare_gates=bare,
        unmixed=frozenset(node.stream for node in nodes if node.residual_last and ends_in_product(node)),
        factors=factor_activations(nodes),
        driven=driven,
        gated_state=gated_state,
        state_gates=StateGates.of(nodes),
        kinks=Kinks.of(nodes),
        products=Products.of(nodes),
        endings=_endings(nodes),
        tied_tables={node.name: node for node in nodes if is_tied_table(node)},
        exponents=sum(map(makes_exponent, nodes)),
        branches=Branches.of(nodes, linear=plain.slope is not None),
        attends=any("softmax_q" in activations_after(node) for node in nodes),
        layers=max((node.weight_depth for node in nodes if node.is_weight), default=0),
    )
    return Plan.of(graph, "auto", chooser.cited)


@dataclass(frozen=True)
class _Chooser:
    """The rules, for what is known of the graph as a whole."""

    plain: Plain
    """The net as a chain of weights, if it is one."""
    head: float
    """The gain of an output layer."""
    bare_gates: bool
    """Products with unbounded gates in the branches of a net without norms."""
    unmixed: frozenset[int | None]
    """The streams whose branches end in a product, with no weight behind it that would mix the signs of what grows."""
    factors: frozenset[str]
    """The activations whose results are factors of something else, where no packed weight says which."""
    driven: bool
    """A recurrence that takes in something at its steps beside its state."""
    gated_state: bool
    """Gates in a recurrence, of a layer or written by hand."""
    state_gates: StateGates
    """Gates that hold a state or a stream."""
    kinks: Kinks
    """Narrow layers, whose biases spread."""
    products: Products | None
    """A chain of gated layers, which start open."""
    endings: dict[str, int]
    """The scales of batch norms that end residual branches, and how many branches their streams have."""
    tied_tables: dict[str, ParameterNode]
    """The embeddings that are the output layer as well."""
    exponents: int
    """The weights that make exponents of factors."""
    branches: Branches
    """The residual branches without norms whose weights share their division."""
    attends: bool
    """Attention, which without positions takes its inputs for a set."""
    layers: int
    """How many weights lie on the longest way."""

    def cited(self, node: ParameterNode) -> tuple[Scheme, str, tuple[str, ...]]:
        """A parameter's scheme and reason, and whose rule that is where it is not the scheme's own author's."""
        scheme, words = self.choose(node)
        if node.is_weight and node.depth == 0 and any(frequency(node, name) for name in activations_after(node)):
            return scheme, words, ("sitzmann2020",)
        remembers = node.role == Role.BIAS and self.state_gates.bias(node) is not None and scheme != Zeros()
        own = remembers and not self.state_gates.is_highway(node)
        return scheme, words, ("jozefowicz2015",) if own else ()

    def choose(self, node: ParameterNode) -> Decision:
        gated, rectified = node.axes.blocks or self.gated_state, slope_behind(node) is not None
        if node.feeds_state and not (gated or rectified):
            return xavier_normal(), "input of a recurrence without gates: Xavier, so that it leaves the state room"
        if node.role in WEIGHTS:
            decision = _of_size(node, self._of_padding(node, for_each_block(node, self._matrix)))
            decision = self._of_pool(node, decision)
            return self.kinks.share(node, self._of_table(node, decision))
        if node.role == Role.BIAS and node.activation == "softplus" and node.stream is not None:
            return Keep(), "the bias of a rate, as in state-space models: kept as constructed"
        if node.role == Role.BIAS:
            return self.state_gates.bias(node) or (self.products and self.products.bias(node)) or self._bias(node)
        if node.role == Role.EMBEDDING:
            return self._embedding(node)
        if node.role == Role.POSITION and added_to_scores(node):
            return Normal(1.0), "positions in the scores of an attention: std 1, as large as the scores"
        beside_tied = node.table_before in self.tied_tables
        if node.role == Role.POSITION and added_to_signals(node) and (self.attends or beside_tied):
            return self._positions(node)
        if (branches := self.endings.get(node.name, 0)) >= MANY:
            words = f"batch norm that ends a residual branch, one of {branches} in a row: 1/∜{branches}"
            return Constant(float(f"{branches**-0.25:.12g}")), f"{words}, so that the gradient does not explode"
        if node.role == Role.LAYER_SCALE and node.ops and node.stream is None:
            words = "layer scale that nothing of the input goes around, so that all of the signal would be small: one"
            return Ones(), words
        if node.role == Role.NORM_SCALE and node.input_rms < 1 and not enters_scores(node):
            words = f"scale of vectors of length 1, whose numbers have size {node.input_rms:.4g}"
            return Constant(float(f"{1 / node.input_rms:.6g}")), f"{words}: 1 over that, so that they have size 1"
        return beside_weights(node)

    def _bias(self, node: ParameterNode) -> tuple[Scheme, str]:
        weight = self.kinks.weights.get(node.name)
        if weight is None:
            return Zeros(), "biases start at zero"
        return self.kinks.bias(node, self.choose(weight)[0].scaled(_known_size(weight)))  # its own input is one

    def _matrix(self, node: ParameterNode, activation: str | None) -> Decision:
        """A weight by its rule; orthogonal in deep nets, where the fluctuations of Gaussian ones add up.

        Not in those that attend, where races are even and matrices are large.
        """
        if node.axes.one_hot:  # a table whose rows a signal is multiplied by: no matrix from inputs to outputs
            gain, words = self._gain(node, activation)
            return _of_gain(gain), f"{words}, fan_in 1"
        scheme, words = self._weight(node, activation)
        deep = self.layers >= DEEP and not self.attends
        inside = not (node.output or node.feeds_state or node.reparametrized or node.axes.groups > 1)
        if not (deep and inside and isinstance(scheme, VarianceScaling)):
            return scheme, words
        if min(matrix_of(node.fans, node.shape, node.axes).flat) > WIDE:
            return scheme, words
        gain = float(f"{math.sqrt(scheme.scale):.12g}")
        return ScaledOrthogonal(gain), f"{words}; {self.layers} layers deep: orthogonal"

    def _weight(self, node: ParameterNode, activation: str | None) -> tuple[Scheme, str]:
        fan_in = f"fan_in {node.fans.fan_in:g}"
        if self._is_tied_depth(node) and (slope := slope_behind(node)):
            words = (
                f"one layer again and again, followed by {activation}: mirrored, so that its steps start as one linear"
            )
            return LooksLinear(1 / slope), f"{words} map that keeps lengths, gain {1 / slope:.4f}"
        if node.feedback or (node.role == Role.RECURRENT and not node.feeds_state):
            return Orthogonal(), "recurrent: an orthogonal matrix keeps the state's length over time"
        if node.feeds_state:
            kind = "a recurrence of rectifiers: gain 1, as much as the state brings"
            kind = kind if slope_behind(node) else "recurrent gates: gain 1"
            words = f"input of {kind}{_of_state(node)}, {fan_in}"
            return _of_gain(state_power(node.state_before) ** -0.5), words
        if node.standardized:
            words = "the model standardizes this weight, so that only its direction counts: gain 1"
            return VarianceScaling(1.0), f"{words}, {fan_in}"
        if node.output and not node.norm_after and self.plain.halved is not None:
            words = f"output layer: gain {self.head:g} for tanh(z/2), which is twice what comes in"
            return self.plain.behind_sigmoids(2 * self.head, words)
        if node.output and not node.norm_after:
            single = node.state_before and node.fans.fan_out == 1
            gain = self.head * (1.0 if single else state_power(node.state_before) ** -0.5)
            lone = ", the only weight, of which no layer below needs a gradient" if self.head == LONE_HEAD else ""
            read = f", of one number out of the {node.state_before} state, small at first" if single else ""
            words = f"output layer{lone}{read}: gain {self.head:g}{'' if single else _of_state(node)}"
            if self.plain.running is not None:
                gain /= math.sqrt(self.plain.running.power)
                words += f" ÷ {math.sqrt(self.plain.running.power):.4f}, the RMS of what it takes in"
            return _of_gain(gain), f"{words}, {fan_in}"
        if node.norm_after:
            words = "a norm follows, so that only the direction counts: gain 1"
            if self.plain.slope is not None and node.stream is None:
                return self.plain.weight(node, activation, 1.0, words)
            return VarianceScaling(1.0), f"{words}, {fan_in}"
        if self.plain.is_deep and node.stream is None:
            return self.plain.weight(node, activation, *self._gain(node, activation))
        if self.exponents > 1 and makes_exponent(node):
            gain = 1 / self.exponents
            words = f"makes the exponent of a factor, one of {self.exponents} that add up: gain {gain:.4f}, {fan_in}"
            return _of_gain(gain), words
        if self.products is not None and (opened := self.products.weight(node, activation)):
            return opened
        gain, words = self._gain(node, activation)
        gain, words = gain * state_power(node.state_before) ** -0.5, words + _of_state(node)
        if self.bare_gates and node.stream is not None:
            return self._bare_gated(node)
        if node.post_norm and not node.residual_last and hands_on(node, activation):
            words += f"; in a branch with a norm after each sum, {node.stream_depth} in the stream"
            gain, words = gain / node.stream_depth**0.25, f"{words}: ÷ ∜{node.stream_depth}"
        if share := self.branches.share(node, activation):
            return _of_gain(gain * share[0]), f"{words}; {share[1]}, {fan_in}"
        if node.residual_last and not node.tamed_by:
            depth, counted = self.branches.depth(node), self.branches.counted(node)
            if depth > 1:
                words += f"; last weight of a residual branch, {counted}"
            if depth > 1 and (bounded(activation) or node.post_norm):
                gain /= depth**0.25
                why = "with a norm after each sum" if node.post_norm else "bounded by its activation"
                words += f", {why}: ÷ ∜{depth}"
            elif depth > 1:
                gain /= math.sqrt(depth)
                words += f": ÷ √{depth}"
        return _of_gain(gain), f"{words}, {fan_in}"

    def _bare_gated(self, node: ParameterNode) -> Decision:
        """What a weight of a gated branch without norms gets: their product must not grow through the stream."""
        depth, fan_in = self.branches.depth(node), f"fan_in {node.fans.fan_in:g}"
        words = f"in a gated branch without norms, {self.branches.counted(node)}: the product of its"
        if node.stream in self.unmixed:
            gain = (2 * depth) ** -0.5
            return _of_gain(gain), f"{words} two weights is 1/(2 · {depth}), gain {gain:.4f}, {fan_in}"
        gain = depth ** (-1 / 3)
        return _of_gain(gain), f"{words} three weights is 1/{depth}, gain {gain:.4f}, {fan_in}"

    def _of_pool(self, node: ParameterNode, decision: Decision) -> Decision:
        """What a weight gets, where many numbers were summed up or averaged into each that it takes in.

        Behind a sum of n it is divided by n, as if it were their mean. A mean of n numbers without a mean of their own
        is smaller by something between 1, where all are equal, and √n, where they are independent; ∜n lies halfway.
        Only in plain nets: attention and mixers make positions alike.
        """
        scheme, words = decision
        if node.norm_after:
            return decision
        if node.summed > 1:
            return scheme.scaled(1 / node.summed), f"{words}; it takes in sums over {node.summed}: ÷ {node.summed}"
        if node.averaged > 1 and self.plain.chain:
            few = min(node.averaged, MOST_AVERAGED)
            return scheme.scaled(
                few**0.25
            ), f"{words}; it takes in means over {node.averaged}, which are small: × ∜{few}"
        return decision

    def _of_padding(self, node: ParameterNode, decision: Decision) -> Decision:
        """What a padded convolution gets in a deep plain net, where zeros at the borders take power in every layer."""
        if node.covered == 1 or node.norm_after or node.stream is not None or not self.plain.is_deep:
            return decision
        scheme, words = decision
        share = float(f"{node.covered:.4g}")
        words += f"; {share:.0%} of its taps meet the input, and zeros the rest: ÷ √{share:g}"
        return scheme.scaled(share**-0.5), words

    def _of_table(self, node: ParameterNode, decision: Decision) -> Decision:
        """What a linear layer gets that takes in rows of a tied table, which is small for the sake of the logits."""
        table = self.tied_tables.get(node.table_before)
        if table is None or node.norm_after or node.role != Role.LINEAR:
            return decision
        scheme, words = decision
        size = _tied_std(table)
        return scheme.scaled(1 / size[0]), f"{words}; it takes in rows of the tied embedding: ÷ {size[1]}"

    def _embedding(self, node: ParameterNode) -> Decision:
        width = node.fans.fan_out
        if is_tied_table(node):
            std, text = _tied_std(node)
            return Normal(std), f"embedding tied to the output: {text} keeps the first logits near 1"
        if node.dot_product:
            words = f"embedding in a dot product: rows of unit length, 1/√{width:g}"
        elif self.plain.chain and not node.norm_after and node.activation != "gate_value":
            words = f"embedding before plain layers: rows of unit length, 1/√{width:g}, which training soon moves"
        elif node.times != 1:
            words = f"embedding whose rows the model multiplies by {node.times:.4g}: 1 over that, for unit variance"
            return Normal(float(f"{1 / node.times:.12g}")), words
        else:
            return Normal(1.0), "embedding: one-hot input, std 1 gives the stream unit variance"
        return Normal(1 / math.sqrt(width)), words

    def _positions(self, node: ParameterNode) -> Decision:
        """Large enough to be told apart by the first attention, and not so large that they drown what stands there."""
        if (table := self.tied_tables.get(node.table_before)) is not None:
            std, text = _tied_std(table)
            size, words = std * table.times, f"{text} × {table.times:.4g}" if table.times != 1 else text
            return Normal(PLACES * size), f"positions beside a tied embedding: half its size, {PLACES:g} · {words}"
        return Normal(PLACES), f"positions: std {PLACES:g}, half of what they are added to"

    def _is_tied_depth(self, node: ParameterNode) -> bool:
        """Whether a weight takes in what it put out before and nothing else: no recurrence, but depth of one layer."""
        fans = node.fans
        return node.feedback and node.role != Role.RECURRENT and not self.driven and fans.fan_in == fans.fan_out

    def _gain(self, node: ParameterNode, activation: str | None) -> tuple[float, str]:
        after = following(node, activation)
        if activation is None and not after.known and node.weight_depth == self.plain.last:
            return 1.0, "what follows is not known, and no weight comes after this one: gain 1"
        if activation is None and not after.known and node.axes.blocks:
            return 1.0, "rows of which it is not known what follows: gain 1"
        if activation == "gate_value" and (gate := self._gate_beside(node)) and squashes(gate):
            power = gains.moments(gate).second_moment
            words = f"value of a product whose {gate} gate lets {power:.4f} of the power pass"
            return power**-0.5, f"{words}: gain {power**-0.5:.4f}"
        if frequency(node, activation) is not None and node.depth == 0:
            gain = 1 / math.sqrt(3 * node.fans.fan_in)
            return gain, f"first of layers of waves: gain 1/√(3 · fan_in) = {gain:.4g}, SIREN's, for many frequencies"
        if activation and after.known and node.captured is None and squashes(activation):
            centred = gains.gain(activation, "centred")
            if self.plain.depth > 2 or (node.stream is not None and not is_gate(node)):
                return centred, f"followed by {activation}, whose mean carries nothing: centred gain {centred:.4f}"
            where = "a shallow net" if self.plain.depth else "a net that is not plain"
            return 1.0, f"followed by {activation} in {where}: gain 1"
        return after.gain, after.words

    def _gate_beside(self, node: ParameterNode) -> str | None:
        """The activation of the gate that a value meets, where it is known."""
        packed = {block.activation for block in node.axes.blocks if block.name == "gate"}
        found = packed or self.factors
        return next(iter(found)) if len(found) == 1 else None


def _endings(nodes: Sequence[ParameterNode]) -> dict[str, int]:
    """Where batch norms end branches, how many branches follow one another: in a stream, or in one after the other."""
    normed = {node.name for node in nodes if any(op.target == "batch_norm" for op in node.ops)}
    ending = [node for node in nodes if node.tamed_by in normed]
    return {node.tamed_by: max(node.stream_depth, in_a_row(ending)) for node in ending}


def _tied_std(table: ParameterNode) -> tuple[float, str]:
    """The std of a table that is the output layer as well, and its formula."""
    width = table.shape[-1]
    text = f"1/√{width}" if table.input_rms == 1 else f"1/({table.input_rms:.4g} · √{width})"
    return float(f"{1 / math.sqrt(width) / table.input_rms:.12g}"), text


def _known_size(node: ParameterNode) -> float:
    """The size of what a weight takes in, where it is known and counts: behind a norm only the direction does."""
    return 1.0 if node.norm_after or node.standardized else float(f"{node.input_rms:.4g}")


def _of_size(node: ParameterNode, decision: Decision) -> Decision:
    """What a weight gets, where the size of what it takes in is known and not one."""
    if (size := _known_size(node)) == 1:
        return decision
    scheme, words = decision
    return scheme.scaled(1 / size), f"{words}; it takes in numbers of size {size:g}: ÷ {size:g}"


def _of_state(node: ParameterNode) -> str:
    """What the size of a state adds to a reason."""
    power = state_power(node.state_before)
    return f" ÷ {math.sqrt(power):.4f}, the RMS of the {node.state_before} state that it takes in" if power != 1 else ""


def _of_gain(gain: float) -> VarianceScaling:
    """A normal law of this gain; to twelve digits, since a root and its square differ in the last."""
    return VarianceScaling(float(f"{gain**2:.12g}"))
