"""Published recipes as ordered rules: which parameters, what they get, and what must be there.

The first rule that matches a parameter decides. A rule that the recipe stands on and that matches nothing is an error:
a renamed layer would otherwise silently lose its initialization. What no rule speaks of is kept, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fanin.errors import RecipeError, compose
from fanin.graph import WEIGHTS, Graph, ParameterNode, Role
from fanin.plans import Plan
from fanin.recipes.registry import REGISTRY, Entry, RecipeFunction
from fanin.rows import Row
from fanin.schemes import Constant, Keep, Ones, Scheme, VarianceScaling, Zeros

Decision = tuple[Scheme, str]
Predicate = Callable[[ParameterNode], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a recipe.

    Args:
        what: the parameters in words, in the plural.
        where: which they are: a glob over names and ties, several, or a function of the node.
        give: from such a parameter to its scheme and reason.
        required: the recipe is none without them.
        hint: the line to write where they are missing.
    """

    what: str
    where: str | Sequence[str] | Predicate
    give: Callable[[ParameterNode], Decision]
    required: bool = False
    hint: str = ""

    def matches(self, node: ParameterNode) -> bool:
        """Whether the rule speaks of this parameter."""
        return self.where(node) if callable(self.where) else is_named(node, self.where)


@dataclass(frozen=True)
class PublishedRecipe:
    """A recipe that is a list of rules for each graph; calling it gives the plan.

    Args:
        name: as the plan shows it, with the settings that differ from the published ones.
        rules: from the graph, which knows widths and depths, to the rules; it raises where the model does not fit.
        sources: the publications that every row refers to.
        notes: what the plan should say beside its rows.
    """

    name: str
    rules: Callable[[Graph], Iterable[Rule]]
    sources: tuple[str, ...]
    notes: Callable[[Graph], tuple[str, ...]] = lambda _: ()

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, graph: Graph) -> Plan:
        rules = tuple(self.rules(graph))
        chosen = [next((i for i, rule in enumerate(rules) if rule.matches(node)), None) for node in graph]
        for index, rule in enumerate(rules):
            if rule.required and index not in chosen:
                raise RecipeError(self._missing(graph, rule))
        rows = [
            self._kept(node) if index is None else Row(node, *rules[index].give(node), self.sources)
            for node, index in zip(graph, chosen, strict=True)
        ]
        return Plan(tuple(rows), self.name, graph.source, graph.inputs, (*graph.notes, *self.notes(graph)))

    def _kept(self, node: ParameterNode) -> Row:
        kind = str(node.role).replace("_", " ")
        return Row(node, Keep(), f"{self.name} says nothing of {kind} parameters like this: kept as constructed")

    def _missing(self, graph: Graph, rule: Rule) -> str:
        roles = ", ".join(sorted({str(node.role) for node in graph})) or "no parameters"
        return compose(
            f"recipe {self.name!r} on a model without {rule.what}",
            f"at least one parameter that is one of the {rule.what}",
            f"the recipe is about them, and the model has {roles}",
            rule.hint or 'fanin.plan(model, inputs, recipe="auto")',
        )


def published(
    name: str,
    rules: Callable[[Graph], Iterable[Rule]],
    *sources: str,
    notes: Callable[[Graph], tuple[str, ...]] = lambda _: (),
    settings: Mapping[str, object] | None = None,
) -> PublishedRecipe:
    """A recipe of these rules, whose name shows the settings that are given: ``gpt2(std=0.01)``.

    >>> published("mine", lambda graph: (), settings={"std": 0.01}).name
    'mine(std=0.01)'
    """
    shown = ", ".join(f"{key}={value!r}" for key, value in (settings or {}).items())
    return PublishedRecipe(f"{name}({shown})" if shown else name, rules, sources, notes)


def enter(name: str, recipe: PublishedRecipe, summary: str, formula: str) -> None:
    """Make a published recipe known by name."""
    named = PublishedRecipe(name, recipe.rules, recipe.sources, recipe.notes)
    function: RecipeFunction = named
    REGISTRY[name] = Entry(name, function, summary, recipe.sources, formula)


def changed(**settings: tuple[object, object]) -> dict[str, object]:
    """The settings that differ from the published ones, each given as (value, published value)."""
    return {key: value for key, (value, usual) in settings.items() if value != usual}


def is_named(node: ParameterNode, patterns: str | Sequence[str]) -> bool:
    """Whether a glob, or one of several, fits the parameter's name or one of its ties."""
    globs = (patterns,) if isinstance(patterns, str) else patterns
    return any(fnmatchcase(name, glob) for glob in globs for name in (node.name, *node.aliases))


def named(*patterns: str) -> Predicate:
    """Parameters whose name or tie fits one of the globs."""
    return lambda node: is_named(node, patterns)


def role(*roles: Role) -> Predicate:
    """Parameters of these roles."""
    return lambda node: node.role in roles


def weights(node: ParameterNode) -> bool:
    """Parameters that contract an input."""
    return node.role in WEIGHTS


def positions(node: ParameterNode) -> bool:
    """Position tables; where nothing was traced, tables with the names that such tables have."""
    if node.role == Role.POSITION:
        return True
    return node.role in (Role.EMBEDDING, Role.OTHER) and is_named(node, _POSITION_NAMES)


_POSITION_NAMES = ("*wpe.*", "*position_embed*", "*pos_emb*", "*embed_pos*", "*relative_*bias*")


def last_of_branch(node: ParameterNode) -> bool:
    """The last weights of residual branches."""
    return node.residual_last and node.is_weight


def outputs(graph: Graph) -> Predicate:
    """Weights with nothing but the output behind them; where nothing was traced, those with the names of heads."""
    if any(node.output and node.is_weight for node in graph):
        return lambda node: node.output and node.is_weight
    return lambda node: node.is_weight and is_named(node, _HEAD_NAMES)


_HEAD_NAMES = ("head.*", "heads.*", "*.head.*", "*lm_head.*", "fc.*", "classifier.*", "*.classifier.*", "output.*")


def give(scheme: Scheme, reason: str) -> Callable[[ParameterNode], Decision]:
    """The same scheme for every parameter of a rule."""
    return lambda _: (scheme, reason)


def norm_scale(node: ParameterNode) -> Decision:
    """One, together with what the model adds to it."""
    if node.offset:
        scheme = Zeros() if node.offset == 1 else Constant(1 - node.offset)
        return scheme, f"a norm's scale starts at one, of which the model adds {node.offset:g}"
    return Ones(), "a norm's scale starts at one"


def torch_default(node: ParameterNode) -> Decision:
    """What torch's constructor draws: U(±1/√fan_in) for weights and their biases."""
    if node.default is not None:
        return node.default, f"left at torch's default: what {node.module_type}'s constructor draws"
    if node.is_weight:
        return VarianceScaling(1 / 3, "fan_in", "uniform"), "left at torch's default: uniform ±1/√fan_in"
    return Keep(), "left as constructed"


ZERO_BIASES = Rule("biases", role(Role.BIAS), give(Zeros(), "biases start at zero"))
DEFAULT_BIASES = Rule("biases", role(Role.BIAS), torch_default)
"""Biases as torch's constructors draw them."""
NORM_SCALES = Rule("norm scales", role(Role.NORM_SCALE), norm_scale)
NORM_SHIFTS = Rule("norm shifts", role(Role.NORM_SHIFT), give(Zeros(), "a norm's shift starts at zero"))
PLAIN = (ZERO_BIASES, NORM_SCALES, NORM_SHIFTS)
"""Zero biases, and norms that start as the identity: common to nearly all."""


def require_branches(graph: Graph, recipe: str) -> None:
    """Refuse a graph in which no last weight of a residual branch is known.

    Raises:
        RecipeError: the model has no residual branches, or was not traced.
    """
    if any(last_of_branch(node) for node in graph):
        return
    untraced = graph.source == "modules"
    why = "module types do not tell where branches end" if untraced else "its weights are scaled by how many there are"
    raise RecipeError(
        compose(
            f"recipe {recipe!r} on a model " + ("that was not traced" if untraced else "without residual branches"),
            "the last weight of each residual branch",
            why,
            f'fanin.plan(model, inputs, recipe="{recipe}")' if untraced else 'fanin.plan(model, inputs, recipe="auto")',
        )
    )


def stream_width(graph: Graph, recipe: str) -> int:
    """The width of the model: of its first embedding, else of what the residual branches put out.

    Raises:
        RecipeError: the graph has neither.
    """
    for node in graph:
        if node.role == Role.EMBEDDING and not positions(node) and node.fans.fan_out:
            return int(node.fans.fan_out)
    for node in graph:
        if last_of_branch(node):
            return int(node.fans.fan_out)
    raise RecipeError(
        compose(
            f"recipe {recipe!r} on a model without embeddings",
            "a model width",
            "the recipe's standard deviations are functions of it",
            'fanin.plan(model, inputs, recipe="auto")',
        )
    )


def layer_indices(graph: Graph) -> dict[str, int]:
    """The number of the layer that each parameter is in, from 0, by its name; none for those outside of layers.

    Layers are the numbered parts of one module in which residual branches end; they are counted by their order, for
    their own numbers may start later, as behind an embedding in one `Sequential`.

    >>> from fanin.fans import Axes
    >>> names = ("0.weight", "1.up.weight", "1.down.weight", "2.up.weight", "2.down.weight", "3.weight")
    >>> ends = {"1.down.weight", "2.down.weight"}
    >>> nodes = [ParameterNode(n, (4, 4), Role.LINEAR, Axes(), residual_last=n in ends) for n in names]
    >>> layer_indices(Graph(tuple(nodes)))
    {'1.up.weight': 0, '1.down.weight': 0, '2.up.weight': 1, '2.down.weight': 1}
    """
    parts = dict.fromkeys(part for node in graph if last_of_branch(node) for part in _numbered_parts(node.name))
    siblings: dict[str, list[str]] = {}
    for part in sorted(parts, key=lambda part: int(part.rpartition(".")[2])):
        siblings.setdefault(part.rpartition(".")[0], []).append(part)
    found: dict[str, int] = {}
    for node in graph:
        own = [part for part in _numbered_parts(node.name) if part in parts]
        # What holds all layers may have a number too, which is then the only one beside it.
        for part in sorted(own, key=lambda part: len(siblings[part.rpartition(".")[0]]) == 1)[:1]:
            found[node.name] = siblings[part.rpartition(".")[0]].index(part)
    return found


def _numbered_parts(name: str) -> list[str]:
    """The paths within a name that end in a number, outermost first: ``layers.3`` in ``layers.3.fc.weight``."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i, part in enumerate(parts) if part.isdecimal()]


def without_stride(node: ParameterNode, scheme: VarianceScaling) -> Scheme:
    """The scheme at the papers' fans, which count ``kernel · channels`` and ignore stride."""
    if node.axes.stride == 1:
        return scheme
    return scheme.resolve(node.axes.fans(node.shape, stride=False))
