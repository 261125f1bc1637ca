"""Example inputs that nobody gave: from documentation, and from what errors ask for."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import nn

from fanin.comparison.randomness import seeded
from fanin.examples import made_up_inputs
from fanin.measuring import measure
from fanin.tracing import trace
from fanin.tracing.documented import Documented
from fanin.tracing.inputs import describe
from fanin.tracing.records import Call
from fanin.tracing.repair import Failure, failure_of, repairs


class Settings:
    """A configuration with one width."""

    def get(self, *names: str, default: object = None, section: str = "") -> object:
        return 12 if "state_dim" in names else default


class Documenting(nn.Module):
    def forward(self, states: torch.Tensor, pixel_mask: torch.Tensor, timesteps: torch.Tensor) -> None:
        """Do nothing.

        Args:
            states (`torch.Tensor` of shape `(batch_size, 3, state_dim)`):
                The states.
            pixel_mask (`torch.BoolTensor` of shape `(batch_size, state_dim * 2)`, *optional*):
                A mask.
            timesteps (`torch.LongTensor` of shape `(batch_size,)`):
                The times.
        """


class Refusing(nn.Module):
    """Takes a second signal that looks optional, and is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 24)
        self.second = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        seen: torch.Tensor = self.first(self.second(cast("torch.Tensor", context).contiguous()))
        return seen + x.mean()


class Assembled(nn.Module):
    """No forward: its parts are run, each by itself."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)


class Part(nn.Sequential):
    main_input_name = "input"


def test_documented_arguments_have_their_documented_shapes_and_types() -> None:
    documented = Documented(Documenting(), Settings())
    made = {name: documented.make(name) for name in ("states", "pixel_mask", "timesteps")}
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in made.items() if value is not None}
    assert shapes == {
        "states": ((2, 3, 12), torch.float32),
        "pixel_mask": ((2, 24), torch.bool),
        "timesteps": ((2,), torch.int64),
    }
    assert documented.make("absent") is None


def test_a_size_that_an_error_names_is_changed_to_the_one_it_wants() -> None:
    call: Call = ((torch.empty(2, 64, 80, device="meta"),), {})
    shapes = [
        tuple(repaired[0][0].shape)
        for repaired in repairs(call, Failure("weight [512, 80], got 160 for 320"), lambda _: None, [])
    ]
    assert (2, 64, 160) in shapes
    assert (2, 64, 80) not in shapes


def test_an_argument_that_was_none_where_it_failed_is_made() -> None:
    model = Refusing()
    with pytest.raises(AttributeError) as caught:
        model(torch.zeros(2, 10))
    assert "context" in failure_of(caught.value).absent
    graph = trace(model)
    assert graph.source == "fake", graph.notes
    assert "context=float32" in graph.inputs
    assert any("a guess" in note for note in graph.notes)
    assert graph["second.weight"].confidence < 1


def test_a_model_without_a_forward_is_traced_by_its_parts_or_not_at_all() -> None:
    whole = trace(Assembled(Part(nn.Linear(4, 8), nn.ReLU()), Part(nn.Linear(3, 8), nn.Tanh())))
    assert whole.source == "fake"
    assert (whole["parts.0.0.weight"].activation, whole["parts.1.0.weight"].activation) == ("relu", "tanh")
    partial = trace(Assembled(Part(nn.Linear(4, 8), nn.ReLU()), nn.Linear(3, 8)))
    assert partial.source == "modules"
    assert all(node.exercised for node in partial)


class Branched(nn.Module):
    """A part with a residual branch that a scale holds small."""

    main_input_name = "input"

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave, self.scale = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.full((4,), 0.1))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + self.scale * self.leave(self.enter(input).relu())


def test_parts_name_what_is_theirs_as_the_model_does() -> None:
    graph = trace(Assembled(Branched(), Branched()))
    ends = [graph[f"parts.{i}.leave.weight"] for i in range(2)]
    assert [node.tamed_by for node in ends] == ["parts.0.scale", "parts.1.scale"]
    assert ends[0].stream != ends[1].stream
    assert ends[0].ops[0].index < ends[1].ops[0].index


IMAGE_AND_MASK = (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.long))


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        ("Input image size (8*8) doesn't match model (16*16)", "float32 2×3×16×16, int64 2×3×16×16"),
        ("Image size 8x8 is too small", "float32 2×3×16×16, int64 2×3×16×16"),
        ("Input type (long int) and bias type (float) should be the same", "float32 2×3×8×8, float32 2×3×8×8"),
        ("mean(): input must be floating point. Got: Long", "float32 2×3×8×8, float32 2×3×8×8"),
    ],
)
def test_masks_follow_their_images_and_become_numbers(error: str, wanted: str) -> None:
    tried = [describe(call) for call in repairs((IMAGE_AND_MASK, {}), Failure(error), lambda _: None, [])]
    assert wanted in tried
    assert wanted not in [describe(call) for call in repairs((IMAGE_AND_MASK, {}), Failure("no"), lambda _: None, [])]


def test_a_call_that_lacks_arguments_never_began() -> None:
    assert not Failure("TypeError: forward() missing 2 required positional arguments: 'a' and 'b'").begun
    assert Failure("RuntimeError: sizes differ").begun


def test_detectors_are_run_in_training_with_boxes_of_many_sizes() -> None:
    detection = pytest.importorskip("torchvision").models.detection
    with seeded(0):
        model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    origin, inputs = next(made_up_inputs(model))
    assert "boxes" in origin
    signals = measure(model, inputs)
    assert not signals.notes, "it runs as it trains"
    reached = [parameter.name for parameter in signals.parameters if parameter.grad_rms]
    assert len(reached) > 0.9 * len(signals.parameters), "at most a scale finds nothing of its size"
