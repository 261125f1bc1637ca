"""The commands that look at one model or one plan, as a person calls them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fanin.cli import app, main
from fanin.errors import FaninError

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of models, from which commands are called."""
    (tmp_path / "workshop.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def healthy():\n"
        "    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))\n"
        "def broken():\n"
        "    model = healthy()\n"
        "    nn.init.constant_(model[0].weight, 0.1)\n"
        "    return model\n"
        "def poisoned():\n"
        "    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))\n"
        "    model[1].running_mean[0] = float('nan')\n"
        "    return model\n"
        "class Pair(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.one, self.two = nn.Linear(8, 4), nn.Linear(6, 4)\n"
        "    def forward(self, x, y):\n"
        "        print('a word from the model')\n"
        "        return torch.tanh(self.one(x) + self.two(y))\n"
        "def pair():\n"
        "    print('a word from the factory')\n"
        "    return Pair()\n"
        "def halved(graph):\n"
        "    from fanin.recipes import REGISTRY\n"
        "    return REGISTRY['he'].function(graph).scale('*.weight', 0.5)\n"
        "def failing(graph):\n"
        "    return graph['no.such']\n"
        "def dividing(graph):\n"
        "    return 1 / 0\n"
        "def batch():\n"
        "    return torch.ones(2, 8), torch.ones(2, 6)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def call(*words: str, code: int = 0) -> str:
    result = RUNNER.invoke(app, list(words))
    assert result.exit_code == code, result.output
    return result.output


def test_trace_prints_the_graph_and_one_story() -> None:
    assert "relu" in call("trace", "workshop:healthy")
    assert "followed" in call("plan", "workshop:healthy")
    assert "0.weight (32×16) is the linear" in call("trace", "workshop:healthy", "--parameter", "0.weight")
    assert json.loads(call("trace", "workshop:healthy", "--json"))["fanin"] == "graph"


def test_explain_teaches_a_code_and_lists_all() -> None:
    assert "F101" in call("explain")
    assert "equal" in call("explain", "F101")
    assert json.loads(call("explain", "--json"))["F101"] == "units that are equal"
    assert "equal" in json.loads(call("explain", "f101", "--json"))["F101"]


def test_apply_writes_what_the_plan_says(workshop: Path) -> None:
    from safetensors.torch import load_file

    call("plan", "workshop:healthy", "--recipe", "he", "--save", "init.json")
    call("apply", "init.json", "workshop:healthy", "-o", "one.safetensors", "--seed", "3")
    call("apply", "init.json", "workshop:healthy", "-o", "two.safetensors", "--seed", "3")
    one, two = load_file("one.safetensors"), load_file("two.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not one["0.bias"].any()
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    model.load_state_dict(one)
    assert not list(workshop.glob("*.part"))


def test_apply_saves_nothing_that_is_not_as_planned(workshop: Path) -> None:
    call("plan", "workshop:poisoned", "--save", "init.json")
    said = call("apply", "init.json", "workshop:poisoned", "-o", "model.safetensors", code=1)
    assert "a buffer that is not a number" in " ".join(said.split())
    assert "nothing was written" in said
    assert not list(workshop.glob("*.safetensors"))


def test_apply_looks_at_its_target_before_it_fills(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("plan", "workshop:healthy", "--save", "init.json")
    (workshop / "folder.safetensors").mkdir()
    monkeypatch.setattr("fanin.apply", lambda *_, **__: pytest.fail("filled"))
    for target in ("/proc/model.safetensors", "folder.safetensors", "model.bin"):
        result = RUNNER.invoke(app, ["apply", "init.json", "workshop:healthy", "-o", target])
        assert isinstance(result.exception, FaninError | OSError)
        assert target.removesuffix(".bin") in str(result.exception)
        assert "needed: " in str(result.exception)


def test_a_recipe_of_ones_own_is_called_and_named() -> None:
    made = json.loads(call("plan", "workshop:healthy", "--recipe", "workshop:halved", "--json"))
    he = json.loads(call("plan", "workshop:healthy", "--recipe", "he", "--json"))
    assert made["rows"] != he["rows"]
    assert "scaled by 0.5" in json.dumps(made)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [("dividing", "ZeroDivisionError: division by zero (workshop.py, line"), ("failing", "no.such")],
)
def test_a_recipe_that_fails_leaves_with_two_and_says_where(
    recipe: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fanin", "plan", "workshop:healthy", "--recipe", f"workshop:{recipe}"])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert "Traceback" not in said


def test_diff_shows_what_changed_and_exits_1() -> None:
    call("plan", "workshop:healthy", "--recipe", "he", "--save", "he.json")
    call("plan", "workshop:healthy", "--recipe", "xavier", "--save", "xavier.json")
    assert "0.weight" in call("diff", "he.json", "xavier.json", code=1)
    assert "no difference" in call("diff", "he.json", "he.json")


@pytest.mark.parametrize("command", ["trace", "plan"])
def test_a_batch_may_be_given_and_what_models_print_is_no_output(command: str) -> None:
    result = RUNNER.invoke(app, [command, "workshop:pair", "--inputs", "workshop:batch", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["source"] == "fake"
    assert "a word from the factory" in result.stderr
