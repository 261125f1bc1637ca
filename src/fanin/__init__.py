"""fanin: start every parameter of a PyTorch model right.

>>> import fanin, torch
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
>>> plan = fanin.initialize(model, recipe="he", seed=0)
>>> print(plan["0.weight"].reason)
followed by relu: gain 1.4142, fan_in 64
"""

from fanin import gains, guide, recipes, reports, schemes
from fanin.applying import apply
from fanin.comparison import compare
from fanin.deferral import deferred
from fanin.diagnoses import Diagnosis
from fanin.diagnosing import diagnose
from fanin.drawing import fill_
from fanin.errors import FaninError
from fanin.fans import Axes, Block, Fans
from fanin.graph import Graph, ParameterNode, Role
from fanin.measuring import measure
from fanin.planning import initialize, plan
from fanin.plans import Plan
from fanin.race import Comparison
from fanin.rows import Row
from fanin.signals import Signals
from fanin.tracing import trace
from fanin.tracing.modules import fans_of
from fanin.verification import Verification

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
    "trace",
]
