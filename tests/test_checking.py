"""`fanin check` as a person and a CI job call it: what it prints, what it writes, and how it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fanin import Plan, examples, files, progress
from fanin.cli import main
from fanin.diagnoses import Diagnosis
from fanin.errors import InputsError

Run = Callable[..., tuple[int, str, str]]

WORKSHOP = """
import sys, time
import torch
from torch import nn

def healthy():
    print("built")
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

def broken():
    model = healthy()
    nn.init.constant_(model[0].weight, 0.1)
    return model

def loud():
    model = healthy()
    nn.init.normal_(model[2].weight, std=50.0)
    return model

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)
    def forward(self, features, scale=1.0):
        return self.fc(features) * scale

class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(16, 4)
        self.unused = nn.Linear(16, 4)
        nn.init.constant_(self.used.weight, 0.1)
    def forward(self, x):
        return self.used(x)

class Raising(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)
    def forward(self, x):
        raise KeyError("boom")

class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4) / 2)

def failing():
    raise ValueError("no such file")

def leaving():
    sys.exit(1)

def slow():
    print("slow", file=sys.stderr, flush=True)
    time.sleep(60)

def batch():
    return torch.randn(8, 16)

ready = torch.ones(8, 16)

def squares(output):
    return (output - 1).square().mean()
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run ``fanin check`` in a folder with a module of models, on a terminal of 80 columns."""
    (tmp_path / "benchwork.py").write_text(WORKSHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "benchwork", raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fanin", "check", *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
        return int(leaving.value.code or 0), *capsys.readouterr()

    return call


def test_healthy_model_says_so_in_a_line(run: Run) -> None:
    code, out, _ = run("benchwork:healthy")
    assert code == 0
    first, second = out.splitlines()
    assert first == "healthy: nothing found"
    assert second == "4 parameters and 3 operations, on float32 8×16, a guess from the first layer"


def test_findings_say_what_to_do_and_leave_with_one(run: Run) -> None:
    code, out, _ = run("benchwork:broken")
    assert code == 1
    assert "F101 error: 0.weight" in out
    assert "1 of 1 can be mended: --fix -o model.safetensors" in out
    assert run("benchwork:broken", "--ignore", "F1")[0] == 0
    assert run("benchwork:broken", "--select", "F2,F3")[0] == 0


def test_output_is_for_programs_whatever_the_model_prints(run: Run) -> None:
    code, out, err = run("benchwork:broken", "--json")
    assert code == 1
    assert Diagnosis.from_json(out).codes == ("F101",)
    assert "built" in err


@pytest.mark.parametrize("name", ["batch.npy", "batch.npz", "named.npz", "batch.pt", "named.pt", "one.safetensors"])
def test_inputs_are_read_from_files(name: str, run: Run, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    writers: dict[str, Callable[[Path], object]] = {
        "batch.npy": lambda path: np.save(path, x.astype(np.float64)),
        "batch.npz": lambda path: np.savez(path, x),
        "named.npz": lambda path: np.savez(path, features=x, scale=np.float32(2)),
        "batch.pt": lambda path: torch.save((torch.from_numpy(x),), path),
        "named.pt": lambda path: torch.save({"features": torch.from_numpy(x)}, path),
        "one.safetensors": lambda path: save_file({"pixels": torch.from_numpy(x)}, path),
    }
    writers[name](tmp_path / name)
    code, out, err = run("benchwork:Named", "--inputs", name)
    assert code == 0, err
    assert "float32 5×16" in out
    assert name in out


def test_inputs_come_from_functions_and_values(run: Run) -> None:
    assert "on float32 8×16, benchwork:batch" in run("benchwork:healthy", "--inputs", "benchwork:batch")[1]
    assert run("benchwork:healthy", "--inputs", "benchwork:ready")[0] in (0, 1)


def test_losses_are_measured(run: Run) -> None:
    def loss(name: str, model: str = "benchwork:healthy") -> Diagnosis:
        return Diagnosis.from_json(run(model, "--loss", name, "--json")[1])

    signals = loss("cross-entropy").signals
    assert signals.uninformed == pytest.approx(np.log(4))
    assert signals.loss == pytest.approx(np.log(4), rel=0.2)
    assert loss("mse").signals.uninformed == pytest.approx(1, abs=0.6), "of 32 targets drawn from N(0, 1)"
    assert loss("benchwork:squares").signals.uninformed == pytest.approx(1)
    assert "F309" in loss("cross-entropy", "benchwork:loud").codes


def test_labels_are_the_same_every_time_and_global_state_stays(untouched_random_state: None) -> None:
    output = torch.eye(6)
    for name in examples.LOSSES:
        assert examples.loss_named(name)(output) == examples.loss_named(name)(output)


def test_fix_saves_a_model_that_is_healthy(run: Run, tmp_path: Path) -> None:
    code, out, err = run("benchwork:broken", "--fix", "-o", "model.safetensors", "--report", "found.json")
    assert code == 0
    assert out.startswith("healthy")
    assert "0.weight" in err
    state = load_file(tmp_path / "model.safetensors")
    assert len(state["0.weight"].unique(dim=0)) == 32
    found = Diagnosis.from_json((tmp_path / "found.json").read_text())
    assert found.codes == ("F101",), "the report is of what was found, not of what is left"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(
        ["benchwork.py", "found.json", "model.safetensors"]
    )


def test_fix_says_what_is_left(run: Run) -> None:
    assert {"F101", "F405"} <= set(Diagnosis.from_json(run("benchwork:Unused", "--json")[1]).codes)
    code, out, _ = run("benchwork:Unused", "--fix", "-o", "plan.json")
    assert code == 0
    assert "F405 note: unused.weight" in out
    assert "F101" not in out
    assert "healthy: nothing but notes" in out


def test_fixed_plan_starts_the_model_next_time(run: Run, tmp_path: Path) -> None:
    assert run("benchwork:broken", "--fix", "-o", "plan.json", "--seed", "3")[0] == 0
    assert not Plan.load(tmp_path / "plan.json")["0.weight"].kept
    assert run("benchwork:broken", "--plan", "plan.json", "--seed", "3")[0] == 0
    assert run("benchwork:broken")[0] == 1


def test_values_alone_are_judged_where_no_inputs_can_be_made(run: Run) -> None:
    code, out, _ = run("benchwork:Bare")
    assert code == 0
    assert "judged by their values alone: give --inputs" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("benchwork:failing",), "ValueError: no such file (benchwork.py, line "),
        (("benchwork:leaving",), "SystemExit: 1"),
        (("benchwork:Raising",), "--inputs batch.npz"),
        (("benchwork:Raising", "--inputs", "benchwork:batch"), "KeyError: 'boom'"),
        (("benchwork:healthy", "--inputs", "benchwork:failing"), "ValueError"),
        (("benchwork:healthy", "--inputs", "nowhere.npz"), "a file that exists"),
        (("benchwork:healthy", "--inputs", "benchwork.py"), "package.module:factory"),
        (("benchwork:healthy", "--loss", "cross-entropi"), "did you mean 'cross-entropy'"),
        (("benchwork:healthy", "--loss", "benchwork:ready"), "a function of the model's output"),
        (("benchwork:healthy", "--loss", "benchwork:failing"), "given: "),
        (("benchwork:healthy", "--select", "X1"), "a rule's code or its beginning"),
        (("benchwork:broken", "--fix"), "--fix -o model.safetensors"),
        (("benchwork:broken", "-o", "model.safetensors"), "--fix"),
        (("benchwork:broken", "--fix", "-o", "model.pt"), ".safetensors or .json"),
        (("benchwork:broken", "--report", "nowhere/page.html"), "a folder that exists"),
        (("benchwork:healthy", "--plan", "nowhere.json"), "nowhere.json"),
    ],
)
def test_what_cannot_run_leaves_with_two_and_one_message(arguments: tuple[str, ...], words: str, run: Run) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_pickles_are_refused(run: Run, tmp_path: Path) -> None:
    torch.save(Path("evil"), tmp_path / "evil.pt")
    code, _, err = run("benchwork:healthy", "--inputs", "evil.pt")
    assert code == 2
    assert "tensors and nothing else" in err


def test_a_fault_of_fanin_is_no_finding(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("fanin.diagnosing.judge", broken)
    code, _, err = run("benchwork:healthy")
    assert code == 2, "1 would say that the model is at fault"
    assert "ZeroDivisionError" in err


def test_ctrl_c_leaves_with_130(tmp_path: Path) -> None:
    (tmp_path / "benchwork.py").write_text(WORKSHOP)
    # A job in the background of a shell ignores SIGINT from birth; a person's terminal does not.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from fanin.cli import main; main()"
    command = [sys.executable, "-c", code, "check", "benchwork:slow"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "slow" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in out + err


def test_files_are_whole_or_untouched(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")

    def interrupted() -> None:
        with files.whole(target) as scratch:
            scratch.write_text("half")
            assert scratch.suffix == ".html"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error, files.whole(tmp_path / "nodir" / "x.json"):
        pass
    assert f"the directory {tmp_path / 'nodir'} does not exist" in str(error.value)
    assert ".part" not in str(error.value)


class Terminal:
    """A standard error that says it is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_waiting_speaks_up_only_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.waiting("measuring"):
        pass
    assert terminal.text == ""
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    with progress.waiting("measuring"):
        while "measuring" not in terminal.text:
            time.sleep(0.01)
    assert terminal.text.endswith("\r\x1b[K"), "the line is gone afterwards"


def test_unknown_losses_name_the_nearest() -> None:
    with pytest.raises(InputsError, match="cross-entropy"):
        examples.loss_named("crossentropy")


def test_help_fits_and_teaches(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("fanin check") >= 4


def test_only_some_layers_are_looked_at(run: Run) -> None:
    code, out, _ = run("benchwork:healthy", "--layers", "0", "--layers", "2*")
    assert code == 0
    assert "4 parameters and 2 operations" in out
    assert "4 parameters and 1 operation," in run("benchwork:healthy", "--layers", "1")[1]
    code, _, err = run("benchwork:healthy", "--layers", "head.*")
    assert code == 2
    assert "\ngiven: layers='head.*', which matches no module" in err
    assert "--layers" in run("--help")[1]
