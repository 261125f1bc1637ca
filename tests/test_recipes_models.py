"""Published recipes on real modules: traced, planned, written and measured."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin import recipes
from fanin.errors import RecipeError
from fanin.tracing import trace
from fanin.tracing.modules import graph_of
from fanin.verification import verify


class ActorCritic(nn.Module):
    """A policy and a value on the same observation, and a log standard deviation for every action."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.actor = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
        self.actor_logstd = nn.Parameter(torch.full((1, 2), 3.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.actor(x), self.actor_logstd.expand(len(x), -1), self.critic(x)


class Sine(nn.Module):
    def __init__(self, omega: float = 30) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x if self.omega == 1 else self.omega * x)


class FixupBlock(nn.Module):
    """A residual block without norm, with scalars around its convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias1, self.bias2, self.bias3 = (nn.Parameter(torch.ones(1)) for _ in range(3))
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv1(x + self.bias1) + self.bias2)
        return torch.relu(x + self.conv2(y) * self.scale + self.bias3)


class FixupNetwork(nn.Module):
    def __init__(self, blocks: int = 4, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(FixupBlock(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class PostNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.embed = nn.Embedding(50, 32)
        self.encoder = nn.TransformerEncoder(layer, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encoder(self.embed(tokens))


def sirens() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 64), Sine(), nn.Linear(64, 64), Sine(), nn.Linear(64, 1))


@pytest.mark.parametrize("traced", [True, False])
def test_ppo_tells_the_heads_apart(traced: bool) -> None:
    model = ActorCritic()
    plan = recipes.ppo()(trace(model, torch.zeros(4, 6)) if traced else graph_of(model))
    assert plan["actor.4.weight"].std == pytest.approx(0.01 / 8)
    assert plan["critic.4.weight"].std == pytest.approx(1 / 8)
    assert plan["actor.0.weight"].std == plan["critic.2.weight"].std == pytest.approx(math.sqrt(2) / 8)
    assert plan["actor_logstd"].expected == (0.0, 0.0)
    fanin.apply(plan, model, seed=0)
    assert verify(plan, model)


class Sampling(nn.Module):
    """An agent whose forward draws actions, so that what its policy's last layer makes is no output."""

    def __init__(self, discrete: bool) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
        self.actor_mean = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2))
        self.actor_logstd = nn.Parameter(torch.ones(1, 2))
        self.discrete = discrete

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = self.actor_mean(x)
        normal = torch.distributions.Normal(made, self.actor_logstd.expand_as(made).exp())
        chosen = torch.distributions.Categorical(logits=made) if self.discrete else normal
        action = chosen.sample()
        return action, chosen.log_prob(action), chosen.entropy(), self.critic(x)


@pytest.mark.parametrize("discrete", [True, False])
def test_ppo_finds_the_head_of_a_policy_that_samples(discrete: bool) -> None:
    plan = recipes.ppo()(trace(Sampling(discrete), torch.zeros(4, 6)))
    gains = {name: plan[f"{name}.weight"].scheme.gain for name in ("actor_mean.0", "actor_mean.2", "critic.2")}
    assert gains == pytest.approx({"actor_mean.0": math.sqrt(2), "actor_mean.2": 0.01, "critic.2": 1.0})


def test_ppo_needs_both_heads() -> None:
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 2))
    with pytest.raises(RecipeError, match="without value heads"):
        recipes.ppo()(trace(model, torch.zeros(4, 6)))


def test_siren_keeps_its_signal() -> None:
    """The paper's claim: sine activations keep a std of √½ in every layer."""
    model = sirens()
    plan = recipes.siren()(trace(model, torch.zeros(4, 2)))
    fanin.apply(plan, model, seed=0)
    x = torch.rand(512, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        for layer in model[:4]:
            x = layer(x)
    assert x.std().item() == pytest.approx(math.sqrt(0.5), rel=0.05)


def test_siren_refuses_a_traced_relu_network() -> None:
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))
    with pytest.raises(RecipeError, match="followed by none, relu"):
        recipes.siren()(trace(model, torch.zeros(4, 2)))


@pytest.mark.parametrize(("omega", "given"), [(1, 30.0), (10, 30.0), (30, 10.0), (30, 1.0)])
def test_siren_refuses_another_frequency(omega: int, given: float) -> None:
    layers = [nn.Linear(2, 64), Sine(omega), nn.Linear(64, 64), Sine(omega), nn.Linear(64, 1)]
    graph = trace(nn.Sequential(*layers), torch.zeros(4, 2))
    with pytest.raises(RecipeError, match=rf"2\.weight is followed by sin(.|\n)*siren\(omega={omega}\)"):
        recipes.siren(omega=given)(graph)
    bound = math.sqrt(6 / 64) / omega
    assert recipes.siren(omega=omega)(graph)["2.weight"].std == pytest.approx(bound / math.sqrt(3))


class PackedGate(nn.Module):
    """A gated branch as Phi-3 has it: gate and value are one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate_up = nn.RMSNorm(16), nn.Linear(16, 64, bias=False)
        self.down = nn.Linear(32, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.norm(x)).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up)


def test_torchtitan_divides_values_that_are_packed_with_their_gate() -> None:
    model = nn.Sequential()
    model.add_module("embed", nn.Embedding(20, 16))
    model.add_module("mix", nn.Linear(16, 16, bias=False))
    model.add_module("layers", nn.Sequential(PackedGate(), PackedGate()))
    model.add_module("head", nn.Linear(16, 20, bias=False))
    plan = recipes.llama_torchtitan()(trace(model, torch.zeros(2, 5, dtype=torch.long)))
    assert plan["layers.1.gate_up.weight"].block_std == pytest.approx({"gate": 0.02, "up": 0.01})
    assert plan["layers.1.down.weight"].std == pytest.approx(0.01)


class FixupStage(nn.Module):
    """A block of Fixup's authors, where the shortcut changes the shape: the same bias is added on each way."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.bias1, self.bias2, self.bias3 = (nn.Parameter(torch.zeros(1)) for _ in range(3))
        self.conv1 = nn.Conv2d(16, 32, 3, stride=2 if pooled else 1, padding=1, bias=False)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.shortcut = nn.AvgPool2d(1, 2) if pooled else nn.Conv2d(16, 32, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(torch.relu(self.conv1(x + self.bias1) + self.bias2)) * self.scale + self.bias3
        x = self.shortcut(x + self.bias1)
        if y.shape[1] != x.shape[1]:
            x = torch.cat((x, torch.zeros_like(x)), 1)
        return torch.relu(y + x)


@pytest.mark.parametrize("pooled", [True, False])
def test_fixup_sees_blocks_whose_shortcut_changes_the_shape(pooled: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), FixupBlock(16), FixupStage(pooled), FixupBlock(32))
    plan = recipes.fixup()(trace(model, torch.zeros(2, 3, 8, 8)))
    assert [plan[f"{index}.conv2.weight"].std for index in (1, 2, 3)] == [0, 0, 0]
    assert plan["1.conv1.weight"].std == pytest.approx(math.sqrt(2 / 144 / 3))
    assert plan["2.conv1.weight"].std == pytest.approx(math.sqrt(2 / 288 / 3))


def test_fixup_starts_every_block_as_its_shortcut() -> None:
    model = FixupNetwork()
    plan = recipes.fixup()(trace(model, torch.zeros(2, 3, 8, 8)))
    he = math.sqrt(2 / 144)
    assert plan["blocks.2.conv1.weight"].std == pytest.approx(he / 2)
    fanin.apply(plan, model, seed=0)
    assert verify(plan, model)
    x = torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.blocks(x), x)


def test_keras_recurrence_is_orthonormal_and_remembers() -> None:
    model = nn.LSTM(24, 32)
    plan = recipes.lstm_keras()(trace(model, torch.zeros(5, 2, 24)))
    assert plan["weight_ih_l0"].std == pytest.approx(math.sqrt(2 / (24 + 128)))
    assert plan["weight_hh_l0"].std == pytest.approx(1 / math.sqrt(128))
    fanin.apply(plan, model, seed=0)
    weight = model.weight_hh_l0.detach()
    assert torch.allclose(weight.T @ weight, torch.eye(32), atol=1e-5)
    bias = (model.bias_ih_l0 + model.bias_hh_l0).detach().view(4, 32)
    assert torch.equal(bias, torch.tensor([[0.0], [1.0], [0.0], [0.0]]).expand(4, 32))


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_keras_recipe_takes_other_recurrent_layers(kind: type[nn.RNNBase]) -> None:
    model = kind(24, 32)
    plan = recipes.lstm_keras()(trace(model, torch.zeros(5, 2, 24)))
    gates = 3 if kind is nn.GRU else 1
    assert plan["weight_hh_l0"].std == pytest.approx(1 / math.sqrt(32 * gates))
    fanin.apply(plan, model, seed=0)
    assert verify(plan, model)
    assert not model.bias_ih_l0.any()


def test_dcgan_generator() -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(32, 64, 4, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.ConvTranspose2d(64, 3, 4, 2, 1)
    )
    plan = recipes.dcgan()(trace(model, torch.zeros(2, 32, 1, 1)))
    fanin.apply(plan, model, seed=0)
    assert verify(plan, model)
    assert plan["1.weight"].expected == (1.0, 0.02)


REFUSED = {"t-fixup": "with norms", "deepnorm": r"multiplied by α = 1\.565"}


@pytest.mark.parametrize("recipe", ["gpt2", "gpt-neox", "olmo", "llama-torchtitan", "t-fixup", "deepnorm", "ddpm"])
def test_branches_are_counted_from_the_dataflow(recipe: str) -> None:
    """Post-norm encoder layers, whose branches no name reveals: the recipes find them, or refuse the model."""
    model = PostNorm()
    graph = trace(model, torch.zeros(2, 7, dtype=torch.long))
    if recipe in REFUSED:
        with pytest.raises(RecipeError, match=REFUSED[recipe]):
            recipes.recipe_named(recipe)(graph)
        return
    plan = recipes.recipe_named(recipe)(graph)
    assert plan["encoder.layers.1.linear2.weight"].node.stream_depth == 6
    fanin.apply(plan, model, seed=0)
    assert verify(plan, model)


class Weighed(nn.Module):
    """A post-norm block whose sum weighs stream and branch in one of several ways."""

    def __init__(self, weigh: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave, self.norm, self.weigh = nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16), weigh

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.weigh(x, self.leave(self.enter(x).relu())))


@pytest.mark.parametrize(
    ("weigh", "scaled"),
    [
        (lambda x, f: x + f, False),
        (lambda x, f: 2.0 * x + f, True),
        (lambda x, f: x + f / 2.0, True),
        (lambda x, f: torch.add(f, x, alpha=2.0), True),
    ],
    ids=["plain", "stream", "branch", "alpha"],
)
@pytest.mark.parametrize("blocks", [1, 4])
def test_alpha_is_found_in_the_sum(weigh: Callable[[Tensor, Tensor], Tensor], scaled: bool, blocks: int) -> None:
    model = nn.Sequential(nn.Linear(8, 16), *[Weighed(weigh) for _ in range(blocks)], nn.Linear(16, 4))
    graph = trace(model, torch.zeros(2, 8))
    assert {node.skip_scaled for node in graph if node.residual_last} == {scaled}
    if scaled:
        assert "gain β" in recipes.deepnorm()(graph)["1.leave.weight"].reason
    else:
        with pytest.raises(RecipeError, match="as it is"):
            recipes.deepnorm()(graph)


def test_layers_are_counted_by_their_blocks() -> None:
    """In one Sequential the first block has the number 1 in its name, and the head behind the last another one."""
    body = [Weighed(lambda x, f: 2.0 * x + f) for _ in range(3)]
    model = nn.Sequential(nn.Embedding(50, 16), *body, nn.Linear(16, 4))
    graph = trace(model, torch.zeros(2, 7, dtype=torch.long))
    olmo = [recipes.olmo()(graph)[f"{place}.leave.weight"].reason for place in (1, 2, 3)]
    assert [reason.split(", ")[-2] for reason in olmo] == ["layer 0", "layer 1", "layer 2"]
    assert "outside of layers" in recipes.deepnorm()(graph)["4.weight"].reason
