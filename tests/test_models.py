"""Models by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fanin import plan
from fanin.errors import InputsError, MissingExtraError
from fanin.models import imported, load

FACTORIES = """
import torch
from torch import nn
from torch.nn.utils import parametrizations

def build():
    return nn.Linear(3, 2)

def with_inputs():
    return nn.Linear(3, 2), torch.ones(1, 3)

def computing():
    layer = nn.Linear(3, 2)
    layer.weight.data.mul_(float(layer.weight.sum().item() != 0))
    return layer

def wrong():
    return 3

ready = nn.Linear(3, 2)

def normed():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))

def spectral():
    return nn.Sequential(nn.Linear(4, 4), parametrizations.spectral_norm(nn.Linear(4, 4)))

def orthogonal():
    return nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))

def older():
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
"""


@pytest.fixture(scope="module")
def factories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("factories")
    (folder / "fanin_test_factories.py").write_text(FACTORIES, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def in_folder(factories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(factories)
    monkeypatch.syspath_prepend(str(factories))


@pytest.mark.parametrize("spec", ["timm/resnet18", "torchvision/vgg11", "torchvision/googlenet", "transformers/gpt2"])
@pytest.mark.usefixtures("untouched_random_state")
def test_libraries_on_meta(spec: str) -> None:
    """No weight is drawn, the inputs are real."""
    model, inputs = load(spec, meta=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    tensors = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    assert all(tensor.device.type == "cpu" for tensor in tensors)


def test_detectors_fetch_no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda url, *_, **__: fetched.append(url))
    model, _ = load("torchvision/ssdlite320_mobilenet_v3_large", meta=True)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1_000_000
    assert not fetched


@pytest.mark.parametrize("spec", ["transformers/gpt2", "transformers/llama", "transformers/bert", "transformers/t5"])
@pytest.mark.usefixtures("untouched_random_state")
def test_small_language_models_run_on_their_inputs(spec: str) -> None:
    model, inputs = load(spec, small=True)
    assert sum(parameter.numel() for parameter in model.parameters()) < 12_000_000
    with torch.no_grad():
        assert model.eval()(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("name", ["whisper", "falcon", "xlnet"])
def test_what_a_small_config_cannot_be_told_is_left(name: str) -> None:
    """Heads of each side, and properties, which follow from what else is set."""
    model, _ = load(f"transformers/{name}", small=True, meta=True)
    assert model.config.num_hidden_layers == 2
    assert max(parameter.numel() for name, parameter in model.named_parameters() if "embed" not in name) < 5_000_000


def test_classes_of_transformers() -> None:
    model, _ = load("transformers/GPT2Model", small=True)
    assert type(model).__name__ == "GPT2Model"


def test_factories_of_the_working_directory() -> None:
    model, inputs = load("fanin_test_factories:build")
    assert isinstance(model, nn.Linear)
    assert inputs is None
    model, inputs = load("fanin_test_factories:with_inputs")
    assert torch.equal(inputs, torch.ones(1, 3))
    assert isinstance(load("fanin_test_factories:ready")[0], nn.Linear)


def test_models_that_compute_with_their_weights_are_built_for_real() -> None:
    model, _ = load("fanin_test_factories:computing", meta=True)
    assert not any(parameter.is_meta for parameter in model.parameters())
    model, _ = load("fanin_test_factories:build", meta=True)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("name", ["normed", "spectral", "orthogonal", "older"])
@pytest.mark.parametrize("recipe", ["orthogonal", "he"])
def test_plans_of_parametrized_models_do_not_depend_on_meta(name: str, recipe: str) -> None:
    spec = f"fanin_test_factories:{name}"
    real, without_values = (load(spec, meta=meta)[0] for meta in (False, True))
    assert plan(without_values, recipe=recipe) == plan(real, recipe=recipe)
    if name == "normed":
        assert all(parameter.is_meta for parameter in without_values.parameters())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("timm/resnet-50", "resnet50"),
        ("torchvision/vgg17", "vgg1"),
        ("transformers/gpt_2", "gpt2"),
        ("vgg16", "package.module:factory"),
        ("keras/vgg16", "timm, torchvision or transformers"),
        ("fanin_test_factories:bild", "did you mean 'build'"),
        ("fanin_test_factories:build.x", "what stands before it is a function"),
        ("math:pi.x", "what stands before it is a float"),
        ("fanin_test_factories:wrong", "gives an int"),
        ("no_such_module_at_all:build", "no module 'no_such_module_at_all'"),
        ("resnet18", "write instead: timm/resnet18"),
        ("models/mine.py:build", "write instead: models.mine:build"),
    ],
)
def test_says_what_is_meant(spec: str, words: str) -> None:
    with pytest.raises(InputsError, match=words):
        load(spec)


def test_only_configs_can_be_shrunk() -> None:
    with pytest.raises(InputsError, match="small"):
        load("timm/resnet18", small=True)


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"\.\[zoo\]"):
        load("timm/resnet18")


def test_an_import_error_inside_the_module_is_not_hidden(factories: Path) -> None:
    (factories / "fanin_test_broken.py").write_text("import no_such_dependency\n", encoding="utf-8")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        imported("fanin_test_broken:build")


def test_a_name_that_is_missing_is_answered_by_those_that_are_the_users() -> None:
    with pytest.raises(InputsError) as caught:
        load("fanin_test_factories:zzzzzz")
    assert "build" in str(caught.value)
    assert "__" not in str(caught.value)
