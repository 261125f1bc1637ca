"""fanin: start every parameter of a PyTorch model right.

>>> import fanin, torch
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
>>> plan = fanin.initialize(model, recipe="he", seed=0)
>>> print(plan["0.weight"].reason)
followed by relu: gain 1.4142, fan_in 64

A name is imported when it is first asked for, so that ``import fanin`` and the command line's help need no torch.
"""

from typing import TYPE_CHECKING

from fanin import connections

if TYPE_CHECKING:
    from fanin import gains, guide, recipes, reports, schemes, testing
    from fanin.applying import apply
    from fanin.comparison import compare
    from fanin.deferral import deferred
    from fanin.diagnoses import Diagnosis
    from fanin.diagnosing import diagnose
    from fanin.drawing import fill_
    from fanin.errors import FaninError
    from fanin.fans import Axes, Block, Fans
    from fanin.graph import Graph, ParameterNode, Role
    from fanin.measuring.measure import measure
    from fanin.planning import initialize, plan
    from fanin.plans import Plan
    from fanin.race import Comparison
    from fanin.rows import Row
    from fanin.signals import Signals
    from fanin.tracing import trace
    from fanin.tracing.modules import fans_of
    from fanin.verification import Verification
else:
    # Type checkers read the imports above and know every name; at run time this table stands for them.
    _HOMES = {
        "Axes": "fans",
        "Block": "fans",
        "Comparison": "race",
        "Diagnosis": "diagnoses",
        "FaninError": "errors",
        "Fans": "fans",
        "Graph": "graph",
        "ParameterNode": "graph",
        "Plan": "plans",
        "Role": "graph",
        "Row": "rows",
        "Signals": "signals",
        "Verification": "verification",
        "apply": "applying",
        "compare": "comparison",
        "deferred": "deferral",
        "diagnose": "diagnosing",
        "fans_of": "tracing.modules",
        "fill_": "drawing",
        "initialize": "planning",
        "measure": "measuring.measure",
        "plan": "planning",
        "trace": "tracing",
    }

    def __getattr__(name: str):
        from importlib import import_module
        from importlib.util import find_spec

        if name in _HOMES:
            globals()[name] = found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
            return found
        if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})


__version__ = "0.1.0"

__all__ = [
    "Axes",
    "Block",
    "Comparison",
    "Diagnosis",
    "FaninError",
    "Fans",
    "Graph",
    "ParameterNode",
    "Plan",
    "Role",
    "Row",
    "Signals",
    "Verification",
    "apply",
    "compare",
    "deferred",
    "diagnose",
    "fans_of",
    "fill_",
    "gains",
    "guide",
    "initialize",
    "measure",
    "plan",
    "recipes",
    "reports",
    "schemes",
    "testing",
    "trace",
]

# Records are of floors that know neither torch nor pages; what serves them is loaded when it is asked for.
connections.announce(plans="fanin.verification", race="fanin.reports", diagnoses="fanin.reports")
