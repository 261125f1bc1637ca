"""Small models of installed libraries, each with the recipe that is to match it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Case:
    """A recipe and a library's model of the same architecture.

    Args:
        recipe: its registered name.
        library: as in the departures.
        build: makes the model, under the caller's random state.
        inputs: what it is called with.
    """

    recipe: str
    library: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]

    @property
    def name(self) -> str:
        return f"{self.recipe} / {self.library}"


def _tokens() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.ones(2, 12, dtype=torch.long)}


def _two_sided() -> dict[str, torch.Tensor]:
    return {**_tokens(), "decoder_input_ids": torch.ones(2, 7, dtype=torch.long)}


def _image(size: int = 64) -> torch.Tensor:
    return torch.zeros(2, 3, size, size)


def _transformers(kind: str, **config: object) -> nn.Module:
    import transformers

    model = getattr(transformers, kind)
    built: nn.Module = model(model.config_class(**{"bos_token_id": 1, "eos_token_id": 2, **config}))
    return built


_SIZES = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
_SIZES |= {"intermediate_size": 128, "max_position_embeddings": 64}


def _gpt2() -> nn.Module:
    return _transformers("GPT2LMHeadModel", vocab_size=100, n_embd=64, n_layer=3, n_head=4, n_positions=64)


def _t5() -> nn.Module:
    sizes = {"vocab_size": 100, "d_model": 64, "d_kv": 8, "d_ff": 128, "num_layers": 2, "num_heads": 16}
    return _transformers("T5ForConditionalGeneration", **sizes, relative_attention_num_buckets=128)


def _mamba() -> nn.Module:
    sizes = {"vocab_size": 100, "hidden_size": 128, "num_hidden_layers": 3, "state_size": 8, "time_step_rank": 16}
    return _transformers("MambaForCausalLM", **sizes, rescale_prenorm_residual=True)


def _timm_vit(mode: str) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        img_size=64, patch_size=8, embed_dim=96, depth=2, num_heads=3, num_classes=50, weight_init=mode
    )
    return model


def _timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    model: nn.Module = SwinTransformer(
        img_size=56, patch_size=4, embed_dim=48, depths=(2, 2), num_heads=(4, 8), window_size=7, num_classes=50
    )
    return model


def _timm_convnext() -> nn.Module:
    from timm.models.convnext import ConvNeXt

    model: nn.Module = ConvNeXt(depths=(1, 1, 2, 1), dims=(16, 32, 48, 64), num_classes=50)
    return model


def _timm_resnet() -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    model: nn.Module = ResNet(BasicBlock, [1, 2, 1, 1], num_classes=50)
    return model


def _timm_mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    model: nn.Module = MlpMixer(img_size=64, patch_size=8, num_blocks=2, embed_dim=96, num_classes=50)
    return model


def _timm_flax_mixer() -> nn.Module:
    """The Mixer with the initialization that timm writes down for Flax but does not use by default."""
    from timm.models._manipulate import named_apply
    from timm.models.mlp_mixer import _init_weights

    model: nn.Module = named_apply(partial(_init_weights, flax=True), _timm_mixer())
    return model


def _timm_mobilenet() -> nn.Module:
    import timm

    model: nn.Module = timm.create_model("mobilenetv3_small_050", num_classes=50)
    return model


def _torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    model: nn.Module = VisionTransformer(
        image_size=64, patch_size=8, num_layers=2, num_heads=3, hidden_dim=96, mlp_dim=192, num_classes=50
    )
    return model


def _torchvision_swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    model: nn.Module = SwinTransformer(
        patch_size=[4, 4], embed_dim=48, depths=[2, 2], num_heads=[4, 8], window_size=[7, 7], num_classes=50
    )
    return model


def _torchvision_convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    model: nn.Module = ConvNeXt([CNBlockConfig(32, 64, 2), CNBlockConfig(64, None, 2)], num_classes=50)
    return model


def _torchvision_resnet(**settings: Any) -> nn.Module:
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    model: nn.Module = ResNet(Bottleneck if settings else BasicBlock, [1, 2, 1, 1], num_classes=50, **settings)
    return model


def _torchvision_efficientnet() -> nn.Module:
    from torchvision.models import efficientnet_b0

    model: nn.Module = efficientnet_b0(weights=None, num_classes=50)
    return model


def _lstm() -> nn.Module:
    return nn.LSTM(48, 64, num_layers=2, bidirectional=True)


CASES = (
    Case("gpt2", "transformers", _gpt2, _tokens),
    Case("gpt-neox", "transformers", partial(_transformers, "GPTNeoXForCausalLM", **_SIZES), _tokens),
    Case("llama", "transformers", partial(_transformers, "LlamaForCausalLM", **_SIZES), _tokens),
    Case("bert", "transformers", partial(_transformers, "BertForMaskedLM", **_SIZES), _tokens),
    Case("bert-tf", "transformers", partial(_transformers, "BertForMaskedLM", **_SIZES), _tokens),
    Case("t5", "transformers", _t5, _two_sided),
    Case("mamba", "transformers", _mamba, _tokens),
    Case("vit", "timm", partial(_timm_vit, ""), _image),
    Case("vit-jax", "timm jax mode", partial(_timm_vit, "jax"), _image),
    Case("vit-moco", "timm moco mode", partial(_timm_vit, "moco"), _image),
    Case("vit-jax", "torchvision", _torchvision_vit, _image),
    Case("swin", "timm", _timm_swin, partial(_image, 56)),
    Case("swin", "torchvision", _torchvision_swin, partial(_image, 56)),
    Case("convnext", "timm", _timm_convnext, _image),
    Case("convnext", "torchvision", _torchvision_convnext, _image),
    Case("resnet", "torchvision", _torchvision_resnet, _image),
    Case("resnet", "torchvision", partial(_torchvision_resnet, groups=8, width_per_group=8), _image),
    Case("resnet-zero-last", "timm", _timm_resnet, _image),
    Case("resnet-zero-last", "torchvision", partial(_torchvision_resnet, zero_init_residual=True), _image),
    Case("efficientnet", "timm", _timm_mobilenet, _image),
    Case("efficientnet", "torchvision", _torchvision_efficientnet, _image),
    Case("mlp-mixer", "timm flax mode", _timm_flax_mixer, _image),
    Case("mlp-mixer", "timm", _timm_mixer, _image),
    Case("lstm-torch", "torch", _lstm, partial(torch.zeros, 5, 2, 48)),
)
