"""Measuring sees what plain torch sees, and changes nothing."""

from __future__ import annotations

import copy
import gc
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fanin.diagnosing import diagnose, judge
from fanin.errors import InputsError
from fanin.examples import loss_named
from fanin.measuring import measure
from fanin.measuring.attention import entropy_of_fused, entropy_of_scores
from fanin.measuring.parameters import duplicate_share
from fanin.measuring.statistics import cosine_between, cosine_within
from fanin.signals import Kind, Signals


def draw(*shape: int, seed: int = 0, std: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


def fill(model: nn.Module, std: float | None = None) -> nn.Module:
    """Weights drawn by a generator of their own, N(0, 1/fan_in) or of a given std; biases zero."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.copy_(draw(*parameter.shape, seed=index, std=std or fan**-0.5))
    return model


def mlp(activation: Callable[[], nn.Module] = nn.ReLU, std: float | None = None) -> nn.Module:
    return fill(nn.Sequential(nn.Linear(32, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 10)), std)


class Block(nn.Module):
    """A pre-norm residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(functional.gelu(self.fc1(self.norm(x))))


class Writer(nn.Module):
    """A model that writes into what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x.mul_(2)
        noise = torch.rand(4) + float(np.random.standard_normal()) + random.random()  # noqa: NPY002
        return functional.dropout(self.norm(self.fc(x)), 0.5) + noise


class Spare(nn.Module):
    """A model with a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.spare = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_numbers_are_those_of_plain_torch() -> None:
    model, x, target = mlp(), draw(16, 32), torch.arange(16) % 10
    signals = measure(model, x, lambda output: functional.cross_entropy(output, target))
    kept = {}
    y = x
    for index, layer in enumerate(model.children()):
        y = layer(y)
        y.retain_grad()
        kept[str(index)] = y
    loss = functional.cross_entropy(y, target)
    loss.backward()
    assert [signal.name for signal in signals.layers] == list(kept)
    for signal in signals.layers:
        y = kept[signal.name]
        assert signal.rms == pytest.approx(y.square().mean().sqrt().item(), rel=1e-5)
        assert signal.mean == pytest.approx(y.mean().item(), abs=1e-6)
        assert signal.zero == pytest.approx((y == 0).float().mean().item(), abs=1e-6)
        assert signal.grad_rms == pytest.approx(y.grad.square().mean().sqrt().item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        found = signals.parameter(name)
        assert found.grad_rms == pytest.approx(parameter.grad.square().mean().sqrt().item(), rel=1e-4)
        assert found.std == pytest.approx(parameter.std(correction=0).item(), rel=1e-4)
    assert signals.loss == pytest.approx(loss.item(), rel=1e-5)
    assert signals.uninformed == pytest.approx(math.log(10), rel=1e-5)


def test_cosine_is_the_mean_over_pairs() -> None:
    vectors = draw(5, 40) + 0.5
    pairs = [functional.cosine_similarity(vectors[i], vectors[j], dim=0) for i in range(5) for j in range(5) if i != j]
    assert cosine_between(vectors) == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-5)
    assert cosine_within(vectors[None]) == pytest.approx(cosine_between(vectors))
    assert cosine_between(vectors[:1]) is None


def state_of(model: nn.Module) -> tuple[Any, ...]:
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    grads = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    post = [parameter._backward_hooks for parameter in model.parameters()]
    return tensors, hooks, grads, post, [module.training for module in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_changes_also_on_failure(fails: bool) -> None:
    model = Writer()
    model.norm.eval()
    model.fc.weight.grad = torch.ones(4, 4)
    x = draw(1 if fails else 3, 4)
    before, given = state_of(model), x.clone()
    rng = torch.get_rng_state().clone(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    if fails:
        with pytest.raises(InputsError, match="one number"):
            measure(model, x, lambda output: output)
    else:
        measure(model, x)
    after = state_of(model)
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert torch.equal(model.fc.weight.grad, torch.ones(4, 4))
    assert after[1] == before[1]
    assert after[3:] == before[3:]
    assert [grad is None for grad in after[2]] == [grad is None for grad in before[2]]
    assert model.calls == 0
    assert torch.equal(x, given)
    assert torch.equal(rng[0], torch.get_rng_state())
    assert (rng[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert rng[2] == random.getstate()


def test_the_same_numbers_every_time() -> None:
    model, x = Writer(), draw(8, 4)
    assert measure(model, x) == measure(model, x)


def test_training_statistics_unless_the_model_cannot() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()
    assert measure(model, draw(64, 8, std=50.0)).layer("1").rms == pytest.approx(1.0, rel=1e-3)
    alone = measure(model, draw(1, 8))
    assert "as in evaluation" in alone.notes[0]


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InputsError, match="given: a str"):
        measure("model")  # type: ignore[arg-type]


def test_a_model_that_fails_is_named() -> None:
    with pytest.raises(InputsError, match="Sequential that fails when called with float32 2×5"):
        measure(mlp(), draw(2, 5))


def test_residual_streams() -> None:
    model = fill(nn.Sequential(nn.Linear(16, 16), Block(16), Block(16), nn.Linear(16, 4)))
    signals = measure(model, draw(8, 16))
    first, second = signals.streams[0]
    assert (first.name, second.stream_depth) == ("1:add", 2)
    before = signals.layer("0").rms
    assert first.stream_start == pytest.approx(before)
    assert first.stream_rms == pytest.approx(before)
    assert first.branch_rms == pytest.approx(signals.layer("1.fc2").rms)
    assert second.stream_rms == pytest.approx(first.rms)
    assert second.stream_growth == pytest.approx(second.rms / before)


def test_attention_entropy_explicit_and_fused() -> None:
    uniform = entropy_of_scores(torch.zeros(2, 3, 5, 7))
    assert uniform is not None
    assert uniform.mean == pytest.approx(1.0)
    sharp = entropy_of_scores(torch.eye(6)[None, None] * 1e4)
    assert sharp is not None
    assert sharp.mean < 1e-3
    q, k = draw(2, 3, 9, 8), draw(2, 3, 9, 8, seed=1)
    mask = torch.full((9, 9), -math.inf).triu(1)
    explicit = entropy_of_scores(q @ k.mT / math.sqrt(8) + mask)
    fused = entropy_of_fused(q, k, k, is_causal=True)
    assert explicit is not None
    assert fused is not None
    assert fused.mean == pytest.approx(explicit.mean, rel=1e-5)
    assert fused.keys == pytest.approx(5.5)  # the first query sees one key and is left out: the mean of 2 … 9


def test_attention_is_seen_in_torchs_own_module() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    signals = measure(layer, draw(2, 6, 32))
    (attention,) = [signal for signal in signals.layers if signal.entropy is not None]
    assert attention.kind is Kind.ATTENTION
    assert 0.8 < attention.entropy <= 1.0
    assert signals.parameter("self_attn.in_proj_weight").reached


def test_saturated_and_dead_units() -> None:
    hot = measure(mlp(nn.Tanh, std=3.0), draw(64, 32)).layer("1")
    cool = measure(mlp(nn.Tanh, std=0.02), draw(64, 32)).layer("1")
    assert hot.saturated is not None
    assert hot.saturated > 0.8
    assert cool.saturated == 0.0
    model = mlp()
    with torch.no_grad():
        model[0].bias[:16] = -100.0
    layer = measure(model, draw(64, 32)).layer("1")
    assert layer.dead == pytest.approx(0.25)
    assert layer.seen == 64


def test_what_is_not_finite_is_counted_apart() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    signals = measure(model, draw(16, 32), lambda output: output.sum())
    assert signals.parameter("2.weight").non_finite == pytest.approx(1 / 4096)
    assert signals.parameter("2.weight").rms == pytest.approx(1 / 8, rel=0.1)
    assert signals.layer("2").non_finite == pytest.approx(1 / 64)
    assert signals.loss == math.inf
    assert Signals.from_json(signals.to_json()) == signals


def test_symmetric_units_and_identical_layers() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    twins = nn.Sequential(layer, copy.deepcopy(layer))
    found = measure(twins)
    assert ("0.linear1.weight", "1.linear1.weight") in found.twins
    assert not any("norm" in name for group in found.twins for name in group)
    model = mlp()
    with torch.no_grad():
        model[0].weight[32:] = model[0].weight[:32]
        model[2].weight.fill_(0.1)
        model[2].bias.fill_(0.1)
        model[4].weight.fill_(0.1)
    signals = measure(model, draw(16, 32))
    assert signals.parameter("0.weight").duplicate_rows == pytest.approx(0.5)
    assert signals.parameter("0.weight").repeats == 2
    assert signals.parameter("2.weight").constant
    # Every unit of the second layer gets the same gradient, so it stays one unit.
    assert signals.parameter("2.weight").grad_duplicate_rows == pytest.approx(63 / 64)
    assert signals.parameter("0.weight").duplicate_columns == 0.0


def test_duplicates_are_confirmed_on_whole_rows() -> None:
    rows = draw(2, 4096)
    nearly = torch.stack((rows[0], rows[0]))
    nearly[1, 1] += 1.0  # not among the entries that are compared first
    assert duplicate_share(nearly, (0,)) == 0.0
    assert duplicate_share(torch.stack((rows[0], rows[0])), (0,)) == 0.5


def test_outliers_do_not_hide_themselves() -> None:
    layer = fill(nn.Linear(64, 64))
    usual = measure(layer).parameter("weight").outlier
    with torch.no_grad():
        layer.weight[0, :4] = 250.0
    assert usual < 5.0
    assert measure(layer).parameter("weight").outlier > 1900


def test_parametrized_weights_show_what_they_become() -> None:
    layer = nn.utils.parametrizations.weight_norm(fill(nn.Linear(64, 64)))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3)
    signals = measure(layer, draw(4, 64))
    found = signals.parameter("parametrizations.weight.original1")
    assert found.effective_std == pytest.approx(layer.weight.std(correction=0).item(), rel=1e-4)
    assert found.std == pytest.approx(found.effective_std / 3, rel=0.02)


def test_parameters_that_the_loss_does_not_reach() -> None:
    model = Spare()
    signals = measure(model, draw(4, 32))
    assert signals.parameter("spare.weight").reached is False
    assert signals.parameter("body.0.weight").reached is True
    assert signals.parameter("spare.weight").influential is False
    assert signals.parameter("body.0.weight").influential is None


class DeadEnd(nn.Module):
    """A head whose result is thrown away, and one that is detached; dropout makes every plain run another."""

    def __init__(self, *, detached: bool) -> None:
        super().__init__()
        self.body, self.side, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.detached = detached

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.dropout(self.body(x), 0.5, self.training)
        side = self.side(hidden)
        return self.head(hidden + side.detach() if self.detached else hidden)


@pytest.mark.parametrize("detached", [True, False])
def test_a_detached_part_is_told_from_one_that_nothing_needs(detached: bool) -> None:
    model = DeadEnd(detached=detached).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    signals = measure(model, draw(4, 8))
    assert signals.parameter("side.weight").reached is False
    assert signals.parameter("side.weight").influential is detached
    found = {finding.place: str(finding.severity) for finding in judge(signals).findings if finding.code == "F405"}
    assert found == {"side.weight": "warning" if detached else "note"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("size", [1.0, 1e-9])
def test_influence_is_asked_beside_the_size_of_the_output(size: float) -> None:
    class Small(DeadEnd):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return size * super().forward(x)

    assert measure(Small(detached=True), draw(4, 8)).parameter("side.weight").influential
    assert not measure(Small(detached=False), draw(4, 8)).parameter("side.weight").influential


def test_nothing_of_a_run_stays_in_memory() -> None:
    model = nn.Sequential(nn.Linear(37, 41), nn.ReLU(), nn.Linear(41, 4))
    signals = measure(model, draw(4, 37))
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, nn.Parameter)]
    alive = [item for item in tensors if item.shape == (41, 37)]
    assert signals.parameter("0.weight").reached
    assert len(alive) == 1


def test_padding_row() -> None:
    model = nn.Sequential(nn.Embedding(10, 4, padding_idx=0), nn.Linear(4, 2))
    assert measure(model, torch.arange(10)[None]).parameter("0.weight").padding_rms == 0.0
    with torch.no_grad():
        model[0].weight.fill_(0.5)
    assert measure(model, torch.arange(10)[None]).parameter("0.weight").padding_rms == 0.5


def test_low_precision_under_autocast() -> None:
    model = mlp()
    with torch.autocast("cpu", torch.bfloat16):
        signals = measure(model, draw(16, 32))
    plain = measure(model, draw(16, 32))
    assert signals.precision == "bfloat16"
    assert signals.layer("2").dtype == "bfloat16"
    assert signals.layer("2").rms == pytest.approx(plain.layer("2").rms, rel=0.02)
    assert signals.layer("2").grad_rms == pytest.approx(plain.layer("2").grad_rms, rel=0.05)


def test_meta_models_and_no_inputs_give_facts_only() -> None:
    with torch.device("meta"):
        model = nn.Linear(4, 4)
    signals = measure(model, draw(2, 4))
    assert signals.parameters[0].meta
    assert not signals.has_run
    assert "meta device" in signals.notes[0]
    assert not measure(mlp()).has_run


def test_only_some_layers() -> None:
    signals = measure(mlp(), draw(2, 32), layers="2")
    assert [signal.name for signal in signals.layers] == ["2"]
    with pytest.raises(InputsError, match="matches no module"):
        measure(mlp(), draw(2, 32), layers="blocks.*")


def test_shared_modules_are_numbered_and_scripted_ones_passed_through() -> None:
    act = nn.ReLU()
    with pytest.warns(FutureWarning, match="deprecated"):
        scripted = torch.jit.script(nn.Linear(4, 4))
    model = nn.Sequential(scripted, act, nn.Linear(4, 4), act)
    signals = measure(model, draw(3, 4))
    assert [signal.name for signal in signals.layers] == ["1", "2", "1#2"]
    assert signals.parameter("0.weight").reached


def test_images_have_channels_second_and_recurrence_is_one_operation() -> None:
    conv = fill(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    with torch.no_grad():
        conv[0].bias[:2] = -100.0
    assert measure(conv, draw(4, 3, 16, 16)).layer("1").dead == pytest.approx(0.25)
    signals = measure(nn.LSTM(4, 8, batch_first=True), draw(2, 5, 4))
    assert [signal.kind for signal in signals.layers] == [Kind.RECURRENT]
    assert len(signals.layers[0].weights) == 4


def test_an_output_that_ignores_its_input_is_all_offset_whatever_was_sampled() -> None:
    """Channels of very different sizes: those that are sampled have another RMS than the whole."""
    model = nn.Linear(4, 4096)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.linspace(-9, 9, 4096).exp())
    (layer,) = [item for item in measure(model, draw(64, 4)).layers if item.offset is not None]
    assert layer.offset == pytest.approx(layer.rms, rel=1e-5)


def test_losses_have_the_names_of_the_command_line() -> None:
    model, x = nn.Linear(4, 3), torch.ones(8, 4)
    for name in ("cross-entropy", "cross_entropy", "mse"):
        assert measure(model, x, name) == measure(model, x, loss_named(name))
        assert diagnose(model, x, loss=name).signals == measure(model, x, name)
    with pytest.raises(InputsError, match="did you mean 'cross-entropy'"):
        measure(model, x, "cross-entropi")
    with pytest.raises(InputsError, match="or a name: cross-entropy, mse"):
        measure(model, x, 3)  # type: ignore[arg-type]


def test_a_computed_weight_of_one_value_has_a_std() -> None:
    signals = measure(
        nn.Sequential(fill(nn.utils.parametrizations.weight_norm(nn.Linear(1, 1))), fill(nn.Linear(1, 2))), draw(4, 1)
    )
    assert signals.parameter("0.parametrizations.weight.original1").effective_std == 0.0
    assert Signals.from_json(signals.to_json()) == signals
