"""Faults in the values themselves: equal units and layers, garbage, tensors that were never written."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faults.cases import Attention, Case, Decoder, Residual, cross_entropy, fault, floats, mlp, scaled, tokens
from faults.proofs import absurd, backward, not_finite, outlier, rows_repeat, same_values, units_alike


@fault("F101", "0.weight", "classic: one constant for all weights", units_alike("0"))
def constant_hidden() -> Case:
    model = mlp(16, 64, 10)
    nn.init.constant_(model[0].weight, 0.1)
    return Case(model, floats(32, 16), cross_entropy(10))


@fault("F101", "*.weight", "classic: every layer the same constant", units_alike("2"))
def constant_everywhere() -> Case:
    model = mlp(16, 64, 64, 10)
    for index in (0, 2, 4):
        nn.init.constant_(model[index].weight, 0.02)
    return Case(model, floats(32, 16), cross_entropy(10))


@fault("F101", "0.weight", "classic: a constant convolution", units_alike("0"))
def constant_convolution() -> Case:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    nn.init.ones_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    return Case(model, floats(8, 3, 12, 12), cross_entropy(5))


@fault("F101", "tokens.weight", "classic: an embedding of ones", rows_repeat("tokens.weight", 1))
def constant_embedding() -> Case:
    model = Decoder()
    nn.init.ones_(model.tokens.weight)
    return Case(model, tokens(4, 12, below=64), cross_entropy(64))


@fault("F101", "0.weight", "classic: a layer widened by copying its units", rows_repeat("0.weight", 16))
def widened_by_copying() -> Case:
    model = mlp(16, 64, 10)
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[:16].repeat_interleave(4, dim=0))
    return Case(model, floats(32, 16), cross_entropy(10))


@fault("F101 F103", "k.weight", "classic: key heads made by repeating a shared one", rows_repeat("k.weight", 8))
def repeated_heads() -> Case:
    model = Attention(32)
    with torch.no_grad():
        model.k.weight.copy_(model.k.weight[:8].repeat(4, 1))
    return Case(model, floats(4, 10, 32))


@fault("F101", "2.weight", "classic: every input weighted alike", rows_repeat("2.weight", 1, axis=1))
def equal_columns() -> Case:
    model = mlp(16, 64, 32, 10)
    with torch.no_grad():
        model[2].weight.copy_(model[2].weight[:, :1].expand(-1, 64))
    return Case(model, floats(32, 16), cross_entropy(10))


ENCODER = "layers.{}.linear1.weight"


@fault(
    "F102",
    "layers.*",
    "pytorch/pytorch#72253: TransformerEncoder clones one layer",
    same_values(ENCODER.format(0), ENCODER.format(1), ENCODER.format(2)),
)
def cloned_encoder() -> Case:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    return Case(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), floats(4, 10, 32))


@fault(
    "F102",
    "layers.*",
    "pytorch/pytorch#86274: TransformerDecoder clones one layer",
    same_values(ENCODER.format(0), ENCODER.format(1)),
)
def cloned_decoder() -> Case:
    layer = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True)
    return Case(nn.TransformerDecoder(layer, 2), (floats(4, 6, 32), floats(4, 10, 32)))


@fault(
    "F102",
    "*.branch.*",
    "meta-pytorch/torchtune#2270: deepcopied blocks",
    same_values("0.branch.1.weight", "3.branch.1.weight"),
)
def copied_blocks() -> Case:
    block = Residual(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    return Case(nn.Sequential(*(copy.deepcopy(block) for _ in range(4))), floats(8, 8, 10, 10))


@fault(
    "F102",
    "*.weight",
    "pytorch/torchtitan#3106: every layer of a shape gets the same bytes",
    same_values("0.weight", "2.weight", "4.weight"),
)
def seed_reset_for_each_layer() -> Case:
    model = mlp(32, 32, 32, 32, 10)
    for index in (0, 2, 4):
        torch.manual_seed(0)
        scaled(model[index], 2**0.5)
    return Case(model, floats(32, 32), cross_entropy(10))


class Experts(nn.Module):
    """A dense mixture of stacked experts."""

    def __init__(self, count: int = 4, width: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.router = nn.Linear(width, count, bias=False)
        self.up = nn.Parameter(torch.randn(count, width, hidden) * (2 / width) ** 0.5)
        self.down = nn.Parameter(torch.randn(count, hidden, width) / hidden**0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(torch.einsum("nd,edf->nef", x, self.up))
        weights = self.router(x).softmax(-1)
        return torch.einsum("nef,efd,ne->nd", hidden, self.down, weights)


@fault("F103 F101", "up", "classic: experts copied from one, so that routing means nothing", rows_repeat("up", 1))
def equal_experts() -> Case:
    model = Experts()
    with torch.no_grad():
        model.up.copy_(model.up[:1].expand_as(model.up))
    return Case(model, floats(32, 16))


@fault("F103 F101", "2.weight", "pytorch/torchtitan#3106: every rank draws the same shard", rows_repeat("2.weight", 16))
def equal_row_shards() -> Case:
    model = mlp(32, 64, 64, 10)
    with torch.no_grad():
        model[2].weight.copy_(model[2].weight[:16].repeat(4, 1))
    return Case(model, floats(32, 32), cross_entropy(10))


@fault(
    "F103 F101",
    "2.weight",
    "pytorch/pytorch#180088: column shards of the same bytes",
    rows_repeat("2.weight", 16, axis=1),
)
def equal_column_shards() -> Case:
    model = mlp(32, 64, 64, 10)
    with torch.no_grad():
        model[2].weight.copy_(model[2].weight[:, :16].repeat(1, 4))
    return Case(model, floats(32, 32), cross_entropy(10))


@fault(
    "F103 F101",
    "tokens.weight",
    "Lightning sharded embedding: one shard on each rank",
    rows_repeat("tokens.weight", 32),
)
def equal_embedding_shards() -> Case:
    model = Decoder()
    with torch.no_grad():
        model.tokens.weight.copy_(model.tokens.weight[:32].repeat(2, 1))
    return Case(model, tokens(4, 12, below=64), cross_entropy(64))


@fault("F104", "2.weight", "karpathy/nanochat#686: a parameter that initialization forgot", not_finite)
def forgotten_parameter() -> Case:
    model = mlp(16, 32, 32, 10)
    nn.init.constant_(model[2].weight, float("nan"))
    return Case(model, floats(32, 16), cross_entropy(10))


@fault("F104", "2.weight", "huggingface/transformers#42418: a head overwritten with garbage", not_finite)
def one_infinity() -> Case:
    model = mlp(16, 32, 10)
    with torch.no_grad():
        model[2].weight[3, 5] = float("inf")
    return Case(model, floats(32, 16), cross_entropy(10))


@fault("F104", "1.weight", "mosaicml/llm-foundry#1745: a norm that meta initialization skipped", not_finite)
def forgotten_norm() -> Case:
    model = nn.Sequential(nn.Linear(16, 32), nn.RMSNorm(32), nn.ReLU(), nn.Linear(32, 10))
    nn.init.constant_(model[1].weight, float("nan"))
    return Case(model, floats(32, 16), cross_entropy(10))


class Rotated(nn.Module):
    """A layer behind a fixed table, as rotary embeddings are."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 10)
        self.register_buffer("inv_freq", torch.linspace(1, 0.1, 16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(x * self.inv_freq.cos())
        return result


@fault(
    "F104", "inv_freq", "huggingface/transformers#34234: a non-persistent buffer of garbage", not_finite, fixable=False
)
def garbage_buffer() -> Case:
    model = Rotated()
    model.inv_freq.fill_(float("nan"))
    return Case(model, floats(32, 16), cross_entropy(10))


@fault("F105", "2.weight", "huggingface/transformers#35437: missing keys left uninitialized", absurd("2.weight"))
def uninitialized_head() -> Case:
    model = mlp(16, 32, 10)
    with torch.no_grad():
        model[2].weight.mul_(10.0 ** torch.linspace(-30, 30, 320).view(10, 32))
    return Case(model, floats(32, 16), cross_entropy(10))


@fault("F105", "0.weight", "TransformerLensOrg/TransformerLens#902: memory that was denormal", absurd("0.weight"))
def denormal_memory() -> Case:
    model = mlp(16, 32, 10)
    nn.init.constant_(model[0].weight, 1.0)
    with torch.no_grad():
        model[0].weight.copy_(1e-41 * torch.rand(32, 16))
    return Case(model, floats(32, 16), cross_entropy(10))


@fault("F105", "0.bias", "Modalities/modalities#357: a bias of uninitialized memory", absurd("0.bias"))
def uninitialized_bias() -> Case:
    model = mlp(16, 32, 10)
    with torch.no_grad():
        model[0].bias.copy_(torch.randn(32) * 10.0 ** torch.linspace(-38, 30, 32))
    return Case(model, floats(32, 16), cross_entropy(10))


@fault("F106", "2.weight", "pytorch/pytorch#155588: trunc_normal_ emits its bound", outlier("2.weight"))
def truncation_outliers() -> Case:
    model = mlp(64, 256, 256, 10)
    nn.init.normal_(model[2].weight, std=0.01)
    with torch.no_grad():
        model[2].weight.flatten()[::20011] = 2.0
    return Case(model, floats(32, 64), cross_entropy(10))


@fault("F106", "tokens.weight", "pytorch/pytorch#145498: 2000-sigma entries in bf16", outlier("tokens.weight"))
def embedding_outliers() -> Case:
    model = Decoder(vocab=512)
    with torch.no_grad():
        model.tokens.weight[[3, 90, 400], [1, 20, 30]] = -2.0
    return Case(model, tokens(4, 12, below=512), cross_entropy(512))


def _half_zero(case: Case) -> None:
    backward(case)
    weight = case.model.get_parameter("2.weight")
    assert not weight[32:].any()
    assert weight[:32].all()


@fault("F107 F101", "2.weight", "mosaicml/llm-foundry#1820: only a slice was written", _half_zero)
def half_written() -> Case:
    model = mlp(16, 64, 64, 10)
    with torch.no_grad():
        model[2].weight[32:] = 0
    return Case(model, floats(32, 16), cross_entropy(10))


@fault("F107 F101", "0.weight", "hpcaitech/ColossalAI#544: a shard stayed a placeholder", rows_repeat("0.weight", 49))
def quarter_written() -> Case:
    model = mlp(16, 64, 10)
    with torch.no_grad():
        model[0].weight[48:] = 0
    return Case(model, floats(32, 16), cross_entropy(10))
