"""The assertion for users' own tests, and the pytest plugin that brings it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fanin.errors import FaninError, InputsError
from fanin.testing import assert_healthy as asserted


def network(std: float | None = None) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        if std is not None:
            nn.init.normal_(model[2].weight, std=std)
    return model


def constant() -> nn.Sequential:
    model = network()
    nn.init.constant_(model[0].weight, 0.1)
    return model


X = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))


def test_healthy_models_pass_and_stay_as_they_are(untouched_random_state: None) -> None:
    model = network().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert asserted(model, X, loss="cross-entropy") is None
    assert asserted(model, X, loss=lambda output: output.square().mean()) is None
    assert asserted(model) is None
    assert not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_failure_says_what_was_found() -> None:
    with pytest.raises(AssertionError) as caught:
        asserted(constant(), X)
    lines = str(caught.value).splitlines()
    assert lines[0] == "Sequential does not start well"
    assert lines[1].startswith("F101 error: 0.weight")
    assert "remedy: draw every weight at random" in str(caught.value)


def test_codes_are_chosen_as_in_diagnose() -> None:
    asserted(constant(), X, ignore=["F1"])
    asserted(constant(), X, select=["F2"])
    with pytest.raises(AssertionError):
        asserted(constant(), X, select=["F1"])


def test_level_says_what_fails() -> None:
    loud = network(2.0)  # eleven times what its fan_in asks for: a warning and no error
    with pytest.raises(AssertionError, match="F201 warning"):
        asserted(loud, X, level="warning")
    asserted(loud, X, level="error")
    with pytest.raises(AssertionError):
        asserted(constant(), X, level="error")
    with pytest.raises(ValueError, match="warn"):
        asserted(constant(), X, level="warn")


def test_loss_by_name_is_judged() -> None:
    asserted(network(50.0), X, select=["F309"])
    with pytest.raises(AssertionError, match="F309"):
        asserted(network(50.0), X, loss="cross-entropy", select=["F309"])


def test_what_cannot_be_judged_is_not_a_failed_assertion() -> None:
    with pytest.raises(FaninError):
        asserted(network(), torch.zeros(2, 3))


def test_fixture_is_the_assertion(assert_healthy: Callable[..., None]) -> None:
    assert_healthy(network(), X)
    with pytest.raises(AssertionError, match="F101"):
        assert_healthy(constant(), X)


PROJECT = """
import sys
LIGHT = not {"torch", "numpy", "fanin.diagnosing"} & set(sys.modules)

def test_plugin_is_light():
    assert LIGHT

def test_constant(assert_healthy):
    import torch
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    torch.nn.init.constant_(model[0].weight, 0.1)
    assert_healthy(model, torch.randn(32, 16))
"""


@pytest.mark.parametrize(
    ("configuration", "options", "passed"),
    [
        ("", (), False),
        ("", ("--fanin-ignore", "F4,F101"), True),
        ("fanin_ignore = F101, F2", (), True),
        ("fanin_ignore = F2", ("--fanin-ignore=F101",), True),
    ],
)
def test_plugin(configuration: str, options: tuple[str, ...], passed: bool, tmp_path: Path) -> None:
    (tmp_path / "test_project.py").write_text(PROJECT)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{configuration}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ("2 passed" if passed else "1 failed, 1 passed") in done.stdout, done.stdout
    assert passed or "F101 error: 0.weight" in done.stdout


def test_an_unknown_level_is_an_error_that_names_the_known() -> None:
    with pytest.raises(InputsError, match="'error' or 'warning'"):
        asserted(network(1.0), X, level="fatal")  # type: ignore[arg-type]
