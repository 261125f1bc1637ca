"""Faults against a parameter's role: parametrizations, padding, ties, norms, biases, gates, embeddings."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faults.cases import Attention, Case, Decoder, Proof, Residual, cross_entropy, fault, floats, mlp, scaled, tokens
from faults.proofs import (
    all_stuck,
    both,
    loss_above,
    no_gradient,
    not_finite,
    off,
    outputs_of,
    parameter,
    rms,
    same_values,
    share,
    shrinks,
)


def _old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def _hidden(module: str) -> Proof:
    """The weight that was set is not the weight that is used."""

    def prove(case: Case) -> None:
        layer = case.model.get_submodule(module)
        was_set = layer.weight.detach().clone()
        outputs_of(case, module)
        assert rms(layer.weight - was_set) > 0.1 * rms(layer.weight)

    return prove


@fault("F202", "0*", "jik876/hifi-gan#145: initialization after weight_norm", _hidden("0"), fixable=False)
def init_after_weight_norm() -> Case:
    layer = _old_weight_norm(nn.Linear(16, 32))
    with torch.no_grad():
        layer.weight.normal_(std=0.01)
    return Case(nn.Sequential(layer, nn.ReLU(), nn.Linear(32, 4)), floats(16, 16))


@fault("F202", "0*", "NVIDIA/DeepLearningExamples#1331: zeros behind weight_norm", _hidden("0"), fixable=False)
def zeros_behind_weight_norm() -> Case:
    layer = _old_weight_norm(nn.Conv1d(4, 8, 3))
    with torch.no_grad():
        layer.weight.zero_()
    return Case(nn.Sequential(layer, nn.Flatten(), nn.ReLU(), nn.Linear(64, 4)), floats(16, 4, 10))


@fault("F104 F310", "0* *original1*", "pytorch/pytorch#25092: a zero direction under weight_norm is 0/0", not_finite)
def zero_direction() -> Case:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(16, 32))
    nn.init.zeros_(layer.parametrizations.weight.original1)
    return Case(nn.Sequential(layer, nn.ReLU(), nn.Linear(32, 4)), floats(16, 16))


class Padded(nn.Module):
    """Sums the embeddings of padded texts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16, padding_idx=0)
        self.head = nn.Linear(16, 4)

    def forward(self, index: Tensor) -> Tensor:
        result: Tensor = self.head(self.embed(index).sum(1))
        return result


def _padding_changes_output(case: Case) -> None:
    index = case.inputs
    longer = F.pad(index, (0, 3))
    with torch.no_grad():
        assert rms(case.model(longer) - case.model(index)) > 1e-3


@fault("F203", "embed.weight", "classic: an embedding redrawn with its padding row", _padding_changes_output)
def padding_row_drawn() -> Case:
    model = Padded()
    nn.init.normal_(model.embed.weight)
    return Case(model, tokens(8, 6, below=50), cross_entropy(4))


@fault("F203", "bag.weight", "classic: an embedding bag whose padding row is not zero", lambda case: _nonzero(case))
def padding_row_of_bag() -> Case:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(50, 16, padding_idx=3, mode="sum")
            self.head = nn.Linear(16, 4)

        def forward(self, index: Tensor) -> Tensor:
            result: Tensor = self.head(self.bag(index))
            return result

    model = Bag()
    nn.init.uniform_(model.bag.weight, -1, 1)
    return Case(model, tokens(8, 6, below=50), cross_entropy(4))


def _nonzero(case: Case) -> None:
    assert parameter(case, "bag.weight")[3].any()


class TiedText(nn.Module):
    """A wide embedding that is the head's matrix too."""

    def __init__(self, std: float, width: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 100, bias=False)
        nn.init.normal_(self.embed.weight, std=std)
        self.head.weight = self.embed.weight

    def forward(self, index: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.embed(index)))
        return result


@fault("F204", "embed.weight head.weight", "classic: N(0, 1) for a matrix that is embedding and head", loss_above(20))
def tied_at_unit_scale() -> Case:
    return Case(TiedText(1.0), tokens(8, 12, below=100), cross_entropy(100))


@fault("F204 F309", "tokens.weight head.weight", "karpathy/nanoGPT: logits of a tied head explode", loss_above(8))
def tied_decoder_at_unit_scale() -> Case:
    model = Decoder(tied=True, width=64)
    nn.init.normal_(model.tokens.weight, std=1.0)
    return Case(model, tokens(4, 12, below=64), cross_entropy(64))


@fault(
    "F102 F204",
    "tokens.weight head.weight",
    "huggingface/accelerate#3668: a tie became two equal copies",
    same_values("tokens.weight", "head.weight"),
    fixable=False,
)
def broken_tie() -> Case:
    model = Decoder()
    with torch.no_grad():
        model.head.weight.copy_(model.tokens.weight)
    return Case(model, tokens(4, 12, below=64), cross_entropy(64))


def _scale_off(name: str) -> Proof:
    def prove(case: Case) -> None:
        assert abs(float(parameter(case, name).detach().mean()) - 1) > 0.5

    return prove


def _normed() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4)
    )


@fault("F205", "*.weight", "classic: normal_(std=0.02) over all parameters, norms too", _scale_off("1.weight"))
def norm_scales_drawn() -> Case:
    model = _normed()
    for index in (1, 4):
        nn.init.normal_(model[index].weight, std=0.02)
    return Case(model, floats(16, 16), cross_entropy(4))


@fault("F205", "1.weight", "mosaicml/llm-foundry#1745: an RMSNorm that was skipped, then zero", _scale_off("1.weight"))
def zero_rms_norm() -> Case:
    model = nn.Sequential(nn.Linear(16, 32), nn.RMSNorm(32), nn.GELU(), nn.Linear(32, 4))
    nn.init.zeros_(model[1].weight)
    return Case(model, floats(16, 16), cross_entropy(4))


@fault("F205", "1.weight", "classic: a batch norm that starts at N(0, 0.02) for N(1, 0.02)", _scale_off("1.weight"))
def batch_norm_around_zero() -> Case:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )
    nn.init.normal_(model[1].weight, 0.0, 0.02)
    return Case(model, floats(8, 3, 10, 10), cross_entropy(4))


@fault("F205", "*.weight", "classic: Xavier's limits for a norm's scale", _scale_off("1.weight"))
def norm_scale_uniform() -> Case:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.SiLU(), nn.Flatten(), nn.Linear(1024, 4))
    nn.init.uniform_(model[1].weight, -0.3, 0.3)
    return Case(model, floats(8, 3, 10, 10), cross_entropy(4))


@fault("F205", "1.weight", "classic: a norm's scale of ten", _scale_off("1.weight"))
def norm_scale_of_ten() -> Case:
    model = _normed()
    nn.init.constant_(model[1].weight, 10.0)
    return Case(model, floats(16, 16), cross_entropy(4))


class Memory(nn.Module):
    """A recurrent network that answers after the last step."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, hidden: int = 32) -> None:
        super().__init__()
        self.rnn = kind(8, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.rnn(x)[0][:, -1])
        return result


def _forgets(case: Case) -> None:
    """The first input's gradient is nothing beside the last's."""
    x = case.inputs.clone().requires_grad_()
    case.model(x).sum().backward()
    assert x.grad is not None
    assert rms(x.grad[:, 0]) < 1e-6 * rms(x.grad[:, -1])


@fault("F206", "rnn.bias*", "pytorch/pytorch#750: a forget gate that starts shut", _forgets)
def forget_gate_shut() -> Case:
    model = Memory()
    for bias in (model.rnn.bias_ih_l0, model.rnn.bias_hh_l0):
        nn.init.zeros_(bias)
        nn.init.constant_(bias[32:64].detach(), -1.5)
    return Case(model, floats(8, 30, 8), cross_entropy(4))


@fault("F206", "rnn.bias*", "pytorch/pytorch#20102: the forget bias on the wrong gate", _forgets)
def forget_bias_on_output_gate() -> Case:
    model = Memory()
    nn.init.zeros_(model.rnn.bias_ih_l0)
    nn.init.zeros_(model.rnn.bias_hh_l0)
    with torch.no_grad():
        model.rnn.bias_ih_l0[32:64] = -2.0
        model.rnn.bias_ih_l0[96:] = 1.0
    return Case(model, floats(8, 30, 8), cross_entropy(4))


@fault("F207", "positions", "classic: positions of unit scale beside tokens of 0.02", off("positions", 40, 0.02))
def positions_drown_tokens() -> Case:
    model = Decoder()
    nn.init.normal_(model.positions)
    return Case(model, tokens(4, 12, below=64), cross_entropy(64))


@fault("F207", "positions", "classic: positions too small to tell apart", off("positions", 500, 1.0))
def positions_drown_in_tokens() -> Case:
    model = Decoder()
    nn.init.normal_(model.tokens.weight, std=1.0)
    nn.init.normal_(model.positions, std=0.001)
    return Case(model, tokens(4, 12, below=64), cross_entropy(64))


@fault(
    "F303 F208",
    "*",
    "classic: a bias that keeps every ReLU shut",
    both(share("1", lambda out: out == 0, 0.999), no_gradient("0.weight")),
)
def bias_shuts_relu() -> Case:
    model = mlp(16, 64, 10)
    nn.init.constant_(model[0].bias, -12.0)
    return Case(model, floats(32, 16), cross_entropy(10))


@fault("F208", "0.bias", "classic: randn for biases as for weights, times ten", shrinks("0", "2", 0.9))
def biases_drown_signal() -> Case:
    model = mlp(16, 64, 64, 10)
    nn.init.normal_(model[0].bias, std=30.0)
    return Case(model, floats(32, 16), cross_entropy(10))


@fault("F401", "*", "layer6ai-labs: both factors of a low-rank update zero", no_gradient("down.weight", "up.weight"))
def adapter_of_zeros() -> Case:
    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(16, 10)
            self.down = nn.Linear(16, 4, bias=False)
            self.up = nn.Linear(4, 10, bias=False)
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.up.weight)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.base(x) + self.up(self.down(x))
            return result

    return Case(Adapter(), floats(16, 16), cross_entropy(10))


class Gated(nn.Module):
    """``x + α·branch(x)`` with a learned α that starts at zero."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.alpha * self.branch(x)
        return result


@fault(
    "F401",
    "0.*",
    "classic: a zero gate on a branch whose last weight is zero",
    no_gradient("0.branch.2.weight", "0.alpha"),
)
def two_zeros_in_a_row() -> Case:
    branch = mlp(16, 32, 16)
    nn.init.zeros_(branch[2].weight)
    return Case(nn.Sequential(Gated(branch), nn.Linear(16, 4)), floats(16, 16), cross_entropy(4))


@fault("F401", "*.weight", "huggingface/transformers#28298: a convolution left all zeros", no_gradient("0.weight"))
def zero_convolution() -> Case:
    model = nn.Sequential(
        scaled(nn.Conv1d(4, 8, 3), 1.4), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    )
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    return Case(model, floats(16, 4, 10), cross_entropy(4))


@fault("F401", "*.weight", "classic: all parameters zero", all_stuck)
def zeros_everywhere() -> Case:
    model = mlp(16, 32, 32, 10)
    for parameter_ in model.parameters():
        nn.init.zeros_(parameter_)
    return Case(model, floats(16, 16), cross_entropy(10))


@fault("F401", "*.weight", "deepspeedai/DeepSpeed#2650: two layers written as empty shards, then zero", all_stuck)
def zero_last_two() -> Case:
    model = mlp(16, 32, 32, 10)
    for index in (2, 4):
        nn.init.zeros_(model[index].weight)
    return Case(model, floats(16, 16), cross_entropy(10))


@fault(
    "F401",
    "*.q.weight *.k.weight",
    "classic: queries and keys both zero",
    no_gradient("1.branch.1.q.weight", "1.branch.1.k.weight"),
)
def zero_queries_and_keys() -> Case:
    attention = Attention(32)
    for layer in (attention.q, attention.k):
        nn.init.zeros_(layer.weight)
    model = nn.Sequential(nn.Linear(32, 32), Residual(nn.LayerNorm(32), attention), nn.Linear(32, 4))
    return Case(model, floats(4, 8, 32), cross_entropy(4))
