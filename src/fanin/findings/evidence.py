"""What the rules look at: the graph, the signals, and what follows from both."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from statistics import median

from fanin.diagnoses import Edit
from fanin.graph import BESIDE, Graph, ParameterNode, Role
from fanin.observations import Kind, LayerSignal, ParameterSignal
from fanin.plans import Plan
from fanin.recipes.registry import recipe_named
from fanin.schemes import Keep, Normal, Ones, Scheme, Zeros
from fanin.signals import Signals

DEPTH_SCALES = 6.0
"""Over how many e-foldings a signal survives: networks deeper than about six depth scales do not train (Schoenholz et
al. 2017, figure 5). The rules on depth warn where a quantity has changed by ``e⁶`` and call ``e¹²`` an error."""
FAR = math.exp(DEPTH_SCALES)
"""``e⁶ ≈ 403``."""

DRAWN = frozenset({Role.LINEAR, Role.CONV, Role.CONV_TRANSPOSE, Role.RECURRENT, Role.EMBEDDING})
"""The roles whose values are drawn at random, each row for itself."""

TIED = 0.02
"""GPT-2's: the logit of a token for itself is then 0.02·width at most, and that of any other 0.02·√width."""

SEEN = 5.0
"""Times as large as the tokens, a constant leaves them a twenty-fifth of the variance."""

NATS = 1.2
"""A head of He's gain has logits of variance 2, which cost one nat, up to a fifth, at any number of classes. Where
classes are few, that is half of ln C and more; the first steps undo it."""

SHRUNK = 0.3
"""Of the recommended output layer: its outputs have a tenth of the power, and the loss hardly feels them."""

MOST_CLASSES = 2**19
"""Twice the largest vocabularies; of so many, single precision cannot tell a whole number from another."""

FORMING = frozenset({"linalg_householder_product", "matrix_exp", "linalg_solve"})
"""What makes an orthogonal matrix of a parameter, whose own values then have a form of their own."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """A weight that was set, and is not the one that the layer uses: a parametrization computes it anew.

    Args:
        name: of the attribute that was set.
        source: the parameter to set instead.
        was_set: its RMS as set.
        used: the RMS of what the layer uses.
        off: the RMS of the difference.
    """

    name: str
    source: str
    was_set: float
    used: float
    off: float


@dataclass(frozen=True)
class Evidence:
    """Everything that a rule may look at.

    Args:
        graph: what each parameter is.
        signals: what was measured.
        plan: what the model was filled by, if that is known.
        hidden: the weights that were set in vain.
        planned: what the remedies found so far would draw, for the rules that come after all others.
    """

    graph: Graph
    signals: Signals
    plan: Plan | None = None
    hidden: tuple[Hidden, ...] = ()
    planned: dict[str, Scheme] = field(default_factory=dict, compare=False)

    @cached_property
    def recommended(self) -> Plan:
        """What the auto recipe would do, which the remedies refer to."""
        return recipe_named("auto")(self.graph)

    def parameters(self) -> Iterator[tuple[ParameterNode, ParameterSignal]]:
        """Every parameter that has values and is trained: what it is, and what was measured."""
        for signal in self.signals.parameters:
            node = self.graph[signal.name]
            if not node.frozen and not signal.meta and signal.elements:
                yield node, signal

    def held(self) -> Iterator[tuple[ParameterNode, ParameterSignal]]:
        """The weights, tables and norms' scales that have values and are frozen: trained elsewhere, or meant so.

        What else is frozen may be a mask, or a number that someone chose.
        """
        for signal in self.signals.parameters:
            node = self.graph[signal.name]
            known = node.role in DRAWN or node.role is Role.NORM_SCALE
            if known and node.frozen and not signal.meta and signal.elements:
                yield node, signal

    def drawn(self) -> Iterator[tuple[ParameterNode, ParameterSignal]]:
        """Those of them that are drawn at random."""
        return ((node, signal) for node, signal in self.parameters() if node.role in DRAWN)

    def drawn_between(self, low: float, high: float) -> list[tuple[ParameterNode, ParameterSignal]]:
        """Those whose standard deviations lie between two."""
        first, end = bisect_left(self._by_std, low, key=_std_of), bisect_right(self._by_std, high, key=_std_of)
        return self._by_std[first:end]

    @cached_property
    def _by_std(self) -> list[tuple[ParameterNode, ParameterSignal]]:
        return sorted((one for one in self.drawn() if not math.isnan(one[1].std)), key=_std_of)

    def scheme(self, name: str) -> Scheme:
        """What a parameter should get: the auto recipe's, or a plain start where that keeps it."""
        row = self.recommended[name]
        node = row.node
        # Recipes count on branches that drown a token's own logit; beside the branches that are there it may cost much.
        if node.name in self.tied or (node.role is Role.POSITION and self.tied):
            return Normal(self._tied_std(node))
        if not isinstance(row.scheme, Keep):
            return row.scheme
        if node.default is not None and not isinstance(node.default, Keep):
            return node.default
        if node.role in (Role.NORM_SCALE, Role.LAYER_SCALE):
            return Ones()
        if node.role in (Role.BIAS, Role.NORM_SHIFT):
            return Zeros()
        if node.role in (Role.POSITION, Role.TOKEN):
            return Normal(0.02)
        return Normal(1 / math.sqrt(max(node.fans.fan_in, 1.0))) if len(node.shape) > 1 else Ones()

    def _tied_std(self, node: ParameterNode) -> float:
        """The std of a tied matrix: small, for its logits, but not lost beside constants that its rows are added to."""
        most, rms = 1 / math.sqrt(max(node.shape[-1], 1)), self.signals.parameter(node.name).rms
        beside = (layer for layer in self.signals.layers if layer.constant_rms and layer.signal_rms)
        least = max(
            ((layer.constant_rms or 0.0) / (layer.signal_rms or 1.0) * rms / SEEN for layer in beside), default=0.0
        )
        return min(max(TIED, least), most)

    def redraw(self, *names: str) -> tuple[Edit, ...]:
        """Edits that give each parameter what it should get; none where a parametrization forms the weight."""
        free = (name for name in names if not FORMING.intersection(self.graph[name].reparametrized))
        return tuple(Edit(name, self.scheme(name)) for name in free)

    def redraw_alike(self, name: str) -> tuple[Edit, ...]:
        """An edit of a weight in a residual branch by the scale of others of its kind, where that is less.

        Beside branches that are drawn with a std of 0.02, one of the recommended scale is all that the stream holds.
        """
        node = self.graph[name]
        kind = (node.role, node.shape, node.activation)
        mates = [
            signal.rms
            for other, signal in self.drawn()
            if other.name != name and (other.role, other.shape, other.activation) == kind and signal.std > 0
        ]
        edits = self.redraw(name)
        if node.stream is None or not mates or not edits:
            return edits
        usual = self.scheme(name).expected(node.fans, node.shape, node.axes).std
        return (Edit(name, Normal(median(mates))),) if median(mates) < usual else edits

    @cached_property
    def tied(self) -> frozenset[str]:
        """The matrices that are both embedding and output, as the run shows."""
        uses: dict[str, set[Kind]] = {}
        for layer in self.signals.of_kind(Kind.EMBEDDING, Kind.WEIGHT):
            for name in layer.weights:
                uses.setdefault(name, set()).add(layer.kind)
        both = {Kind.EMBEDDING, Kind.WEIGHT}
        return frozenset(name for name, kinds in uses.items() if kinds == both and self._is_table(name))

    def _is_table(self, name: str) -> bool:
        return self.graph[name].role is Role.EMBEDDING

    def becomes(self, name: str) -> float:
        """By what the remedies found so far multiply a parameter's RMS; 1 where they leave it."""
        node, have = self.graph[name], weight_rms(self.signals.parameter(name))
        scheme = self.planned.get(name)
        if scheme is None or not have:
            return 1.0
        return math.hypot(*scheme.expected(node.fans, node.shape, node.axes)) / have

    def relief(self, layer: LayerSignal) -> float:
        """By what the remedies found so far multiply what an operation takes in, back to the norm before it."""
        factor = 1.0
        for earlier in self._way_to(layer):
            weights = [name for name in earlier.weights if self.graph[name].is_weight]
            factor *= math.prod(map(self.becomes, weights)) * self.without_biases(earlier)
        return factor

    def _way_to(self, layer: LayerSignal) -> Iterator[LayerSignal]:
        """The weights' operations before one, the nearest first, up to a norm, and that; or up to a residual stream."""
        depth = layer.weight_depth - (layer.kind is Kind.WEIGHT)
        again = any(node.feedback for node in self.graph)  # a state's sum with what comes in is no residual stream
        for earlier in reversed(self.signals.layers[: layer.index]):
            if earlier.stream is not None and not again:
                return
            here = earlier.tower == layer.tower and earlier.weight_depth == depth
            if here and earlier.kind in (Kind.WEIGHT, Kind.NORM):
                yield earlier
                if earlier.kind is Kind.NORM:
                    return
                depth -= 1

    def without_biases(self, layer: LayerSignal) -> float:
        """What is left of an output's RMS when the biases that remedies zero are gone."""
        zeroed = [name for name in layer.weights if self.zeroes(name)]
        if not zeroed or not layer.rms:
            return 1.0
        power = layer.rms**2 - sum(self.signals.parameter(name).rms ** 2 for name in zeroed)
        return max(math.sqrt(max(power, 0.0)), varying(layer)) / layer.rms

    def zeroes(self, name: str) -> bool:
        """Whether a remedy found so far zeroes a bias or a norm's shift."""
        return self.planned.get(name) == Zeros() and self.graph[name].role in (Role.BIAS, Role.NORM_SHIFT)

    @cached_property
    def intended_zeros(self) -> frozenset[str]:
        """The zero parameters that receive a gradient: they open at the first step, and are meant to."""
        zeros = ((node, signal) for node, signal in self.parameters() if signal.constant and not signal.rms)
        return frozenset(node.name for node, signal in zeros if node.role not in BESIDE and signal.grad_rms)

    def is_copy(self, name: str) -> bool:
        """Whether a parameter belongs to an untrained copy of a trained module: a target network, an average."""
        return any(name == root or name.startswith(f"{root}.") for root in self._copies)

    @cached_property
    def _copies(self) -> frozenset[str]:
        """The modules that hold a trained one's values and get no gradient; clones in one stack are no copies."""
        found: set[str] = set()
        for group in self.signals.twins:
            trained = [name for name in group if self.signals.parameter(name).reached]
            for name in group:
                if self.signals.parameter(name).reached is False:
                    found.update(root for other in trained if (root := _root_of_copy(name, other)))
        return frozenset(found)

    @cached_property
    def last(self) -> frozenset[str]:
        """The output layers, and the weights behind which no other follows: of a policy's noise, say, or a product."""
        deepest: dict[int | None, int] = {}
        for layer in self.signals.layers:
            deepest[layer.tower] = max(deepest.get(layer.tower, 0), layer.weight_depth)
        inner: set[str] = set()
        outer: set[str] = set()
        for layer in self.signals.layers:
            ends = layer.tower is not None and layer.weight_depth == deepest[layer.tower]
            (outer if ends else inner).update(layer.weights)
        return frozenset(node.name for node in self.graph if node.output) | (outer - inner)

    @cached_property
    def zero_head(self) -> bool:
        """Whether an output layer starts at zero and moves, so that no gradient passes it in the first step."""
        return any(self.graph[name].output for name in self.intended_zeros)

    @cached_property
    def fair_loss(self) -> bool:
        """Whether a loss was given, and is near that of knowing nothing: by half of it, as F309 asks of entropies."""
        loss, uninformed = self.signals.loss, self.signals.uninformed
        if loss is None or uninformed is None or uninformed <= 0:
            return False
        return loss <= max(1.5 * uninformed, uninformed + NATS if is_entropy(uninformed) else 0.0)

    @cached_property
    def finite(self) -> bool:
        """Whether all that was run came out finite."""
        loss = self.signals.loss
        return (loss is None or math.isfinite(loss)) and not any(layer.non_finite for layer in self.trunk)

    @cached_property
    def trunk(self) -> tuple[LayerSignal, ...]:
        """The operations that carry the signal; masks and scores, which may be infinite on purpose, are none."""
        return self.signals.of_kind(Kind.WEIGHT, Kind.NORM, Kind.ACTIVATION, Kind.EMBEDDING, Kind.RECURRENT)

    @cached_property
    def norms(self) -> frozenset[str]:
        """The scales of norms that end a residual branch, so that they may start at zero."""
        return frozenset(node.tamed_by for node in self.graph if node.tamed_by)

    @cached_property
    def plain(self) -> bool:
        """Whether neither norms, residual streams nor gates help the signal through depth."""
        helped = any(node.role == Role.NORM_SCALE or node.stream is not None or node.norm_after for node in self.graph)
        return not helped and not self.signals.of_kind(Kind.NORM)

    @cached_property
    def chain(self) -> tuple[LayerSignal, ...]:
        """The weights' operations of a plain net, up to its output; without those whose weight is zero."""
        layers = self.signals.of_kind(Kind.WEIGHT)
        return tuple(
            layer for layer in layers if layer.rms and all(self.signals.parameter(n).rms for n in layer.weights[:1])
        )

    def averaged(self, layer: LayerSignal, steps: int | None = None) -> float:
        """Over how many positions the signal was averaged before an operation; of so many before it only, if given.

        What differs from input to input has 1/√n of its size in the mean of n positions that differ by themselves, as
        the members of a set do: this is the mean's doing, and no fault of a weight.
        """
        count = 1.0
        first = 0 if steps is None else max(layer.index - steps - 1, 0)
        for before, pool in pairwise(self.signals.layers[first : layer.index]):
            if pool.kind == Kind.POOLING and pool.shape and pool.tower == layer.tower and _is_mean(pool):
                count *= max(math.prod(before.shape) / math.prod(pool.shape), 1.0)
        return count

    @cached_property
    def alone(self) -> bool:
        """Whether the signal has one way only: no streams, nothing beside that is joined to it, and one end."""
        joined = any(layer.target in ("cat", "concat") for layer in self.signals.layers)
        several = sum(node.output and node.is_weight for node in self.graph) > 1
        streams = self.signals.streams or any(node.stream is not None for node in self.graph)
        return not (joined or several or streams)

    def gain(self, layer: LayerSignal) -> float | None:
        """``std·√fan_in`` of the weight that an operation reads: what it multiplies a signal's RMS by."""
        for name in layer.weights:
            node = self.graph[name]
            if node.is_weight:
                return weight_rms(self.signals.parameter(name)) * math.sqrt(max(node.fans.fan_in, 1.0))
        return None


def _root_of_copy(name: str, other: str) -> str:
    """The module in which a parameter plays the part of another one in its own; empty where both are of one stack.

    >>> _root_of_copy("target.0.weight", "online.0.weight"), _root_of_copy("layers.0.weight", "layers.1.weight")
    ('target', '')
    """
    mine, its = name.split("."), other.split(".")
    while len(mine) > 1 and len(its) > 1 and mine[-1] == its[-1]:
        mine.pop()
        its.pop()
    stacked = mine[:-1] == its[:-1] and mine[-1].isdecimal() and its[-1].isdecimal()
    return "" if stacked else ".".join(mine)


def _is_mean(layer: LayerSignal) -> bool:
    return layer.target == "mean" or "avg_pool" in layer.target


def weight_rms(signal: ParameterSignal) -> float:
    """The RMS of the weight that the layer computes with."""
    return signal.rms if signal.effective_std is None else signal.effective_std


def varying(layer: LayerSignal) -> float:
    """The RMS of that part of an output which differs from input to input."""
    return layer.rms if layer.varying is None else layer.varying


def sensitivity(layer: LayerSignal) -> float | None:
    """How much the loss changes with a relative change of an output: ‖gradient‖ · RMS.

    A norm behind the layer, or a factor that the next layer undoes, does not change it.
    """
    if layer.grad_rms is None:
        return None
    return layer.grad_rms * math.sqrt(math.prod(layer.shape)) * layer.rms


def is_entropy(uninformed: float) -> bool:
    """Whether the loss of an output of zeros is ln C for a whole number C, as that of a cross-entropy is."""
    classes = math.exp(min(uninformed, 100.0))
    return 1.5 < classes < MOST_CLASSES and abs(classes - round(classes)) < 1e-5 * classes


def _std_of(one: tuple[ParameterNode, ParameterSignal]) -> float:
    return one[1].std
