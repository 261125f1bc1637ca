"""Models of the libraries as they construct them, and zeros that are meant: nothing is found in nearly all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fanin.comparison.workers import one_thread
from fanin.diagnoses import Diagnosis, Severity
from fanin.diagnosing import diagnose

FALSE_ERRORS, FALSE_WARNINGS = 0.02, 0.1
"""Of the models; with as few as here, none may have an error."""

Build = Callable[[], tuple[nn.Module, Any]]


def timm(name: str, size: int = 160, **options: Any) -> Build:
    def build() -> tuple[nn.Module, Any]:
        library = pytest.importorskip("timm")
        return library.create_model(name, pretrained=False, **options), torch.randn(4, 3, size, size)

    return build


def torchvision(name: str, size: int = 128, **options: Any) -> Build:
    def build() -> tuple[nn.Module, Any]:
        library = pytest.importorskip("torchvision")
        return library.models.get_model(name, weights=None, **options), torch.randn(4, 3, size, size)

    return build


def transformers(kind: str, config: str, **options: Any) -> Build:
    def build() -> tuple[nn.Module, Any]:
        library = pytest.importorskip("transformers")
        model = getattr(library, kind)(getattr(library, config)(**options))
        return model, {"input_ids": torch.randint(3, 1000, (4, 16))}

    return build


SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}

HEALTHY: dict[str, Build] = {
    "test_vit": timm("test_vit"),
    "test_resnet": timm("test_resnet"),
    "test_efficientnet": timm("test_efficientnet"),
    "test_convnext": timm("test_convnext"),
    "test_mambaout": timm("test_mambaout"),
    "convnext_atto": timm("convnext_atto", 96),
    "mobilenetv3_small_050": timm("mobilenetv3_small_050", 96),
    "regnetx_002": timm("regnetx_002", 96),
    "vit_tiny": timm("vit_tiny_patch16_224", 224),
    "deit_tiny": timm("deit_tiny_patch16_224", 224),
    "zero last scale": timm("resnet18", 96, zero_init_last=True),
    "layer scale 1e-6": timm("test_vit", init_values=1e-6),
    "layer scale 1e-5, zero head": timm("vit_tiny_patch16_224", 224, init_values=1e-5, weight_init="jax"),
    "resnet18": torchvision("resnet18"),
    "zero residual": torchvision("resnet18", zero_init_residual=True),
    "squeezenet1_1": torchvision("squeezenet1_1", 224),
    "shufflenet_v2_x0_5": torchvision("shufflenet_v2_x0_5"),
    "mobilenet_v3_small": torchvision("mobilenet_v3_small"),
    "bert": transformers("BertForMaskedLM", "BertConfig", **SMALL),
    "roberta": transformers("RobertaForMaskedLM", "RobertaConfig", **SMALL),
    "gpt2": transformers("GPT2LMHeadModel", "GPT2Config", n_embd=64, n_layer=2, n_head=4),
    "llama": transformers("LlamaForCausalLM", "LlamaConfig", **SMALL),
    "opt": transformers("OPTForCausalLM", "OPTConfig", ffn_dim=128, **SMALL),
    "distilbert": transformers(
        "DistilBertForMaskedLM", "DistilBertConfig", dim=64, hidden_dim=128, n_layers=2, n_heads=4
    ),
}


@pytest.fixture(scope="module")
def diagnoses() -> dict[str, Diagnosis]:
    with one_thread(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return {name: diagnose(*build()) for name, build in HEALTHY.items()}


@pytest.mark.parametrize(
    ("severity", "most"), [(Severity.ERROR, FALSE_ERRORS), (Severity.WARNING, FALSE_WARNINGS)], ids=str
)
def test_few_healthy_models_have_findings(diagnoses: dict[str, Diagnosis], severity: Severity, most: float) -> None:
    false = {
        name: [str(finding) for finding in diagnosis.findings if finding.severity is severity]
        for name, diagnosis in diagnoses.items()
    }
    assert sum(map(bool, false.values())) <= most * len(false), {name: found for name, found in false.items() if found}


def test_every_healthy_model_was_run(diagnoses: dict[str, Diagnosis]) -> None:
    assert all(diagnosis.signals.has_run and diagnosis.signals.has_gradients for diagnosis in diagnoses.values())
