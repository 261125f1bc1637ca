"""The command line: what it prints, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fanin import Plan, gains, schemes
from fanin.cli import main
from fanin.race import Comparison

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run ``fanin`` with these arguments in a fresh folder, on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fanin", *arguments])
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


RACE = ("fanin.tasks:deep_network", "--data", "fanin.tasks:digits", "--workers", "1", "--steps", "2", "--seeds", "1")


def test_plan_prints_and_saves(run: Run, tmp_path: Path) -> None:
    code, out, err = run("plan", "fanin.tasks:deep_network", "--recipe", "he", "--save", "init.json")
    assert code == 0
    assert "followed by relu: gain 1.4142" in out
    assert "plan written to init.json" in err
    assert len(Plan.load(tmp_path / "init.json")) == 60


def test_plan_as_json(run: Run) -> None:
    _, out, _ = run("plan", "transformers/gpt2", "--small", "--recipe", "xavier", "--json")
    assert Plan.from_json(out).recipe == "xavier"


def test_plan_in_few_lines(run: Run) -> None:
    _, out, _ = run("plan", "timm/resnet18", "--recipe", "he", "--summary")
    assert "parameters by recipe he" in out
    assert len(out.splitlines()) < 15


def test_compare_ends_with_table_verdict_and_path(run: Run, tmp_path: Path) -> None:
    code, out, err = run("compare", *RACE, "--recipes", "he,zero", "--lrs", "0.001")
    assert code == 0
    assert "verdict" in out
    assert "stay at chance" in out
    assert str(tmp_path / "race.html") in err
    assert (tmp_path / "race.html").exists()


def test_compare_takes_plans_from_files(run: Run, tmp_path: Path) -> None:
    run("plan", "fanin.tasks:deep_network", "--recipe", "he", "--save", "init.json")
    code, out, _ = run("compare", *RACE, "--recipes", "init.json,he", "--lrs", "0.001", "--json")
    assert code == 0
    result = Comparison.from_json(out)
    assert result.recipes == ("init.json", "he")
    first, second = result.runs
    assert first.losses == second.losses
    assert not (tmp_path / "race.html").exists(), "--json alone writes no page"


def test_schemes_lists_every_registered_one(run: Run) -> None:
    _, out, _ = run("schemes", "--json")
    rows = json.loads(out)
    named = {row["scheme"] for row in rows} | {other for row in rows for other in row["also"]}
    assert set(schemes.REGISTRY) <= named
    assert {"he_normal", "kaiming_normal", "Zeros"} <= named
    assert all(row["summary"] for row in rows)
    by_name = {row["scheme"]: row for row in rows}
    assert by_name["Orthogonal"]["sources"] == ["Saxe et al. 2014"]


def test_gains(run: Run) -> None:
    _, out, _ = run("gains", "--json")
    assert len(json.loads(out)) == len(gains.table())
    _, out, _ = run("gains", "tanh")
    assert "1.59254" in out
    assert "1.66667" in out, "torch's own figure stands beside the exact one"


@pytest.mark.parametrize("command", [("schemes",), ("gains",), ("gains", "silu"), ("compare", "--help")])
def test_fits_eighty_columns(command: tuple[str, ...], run: Run) -> None:
    _, out, _ = run(*command)
    assert max(map(len, out.splitlines())) <= 80


def test_version(run: Run) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("fanin ")


@pytest.mark.parametrize("command", ["plan", "compare", "gains"])
def test_help_has_examples(command: str, run: Run) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Examples" in out
    assert f"fanin {command}" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "timm/resnet-18"), "resnet18"),
        (("plan", "fanin.tasks:deep_network", "--recipe", "hee"), "hee"),
        (("compare", "fanin.tasks:deep_network"), "--data mymodels:data"),
        (("compare", *RACE, "--lrs", "fast"), "--lrs 0.001,0.01"),
        (("compare", *RACE, "--out", "nowhere/race.html"), "mkdir -p nowhere"),
        (("compare", *RACE, "--out", "race.docx"), ".html"),
        (("compare", *RACE, "--recipes", "hee"), "hee"),
        (("gains", "sillu"), "silu"),
    ],
)
def test_errors_name_the_fix_without_a_traceback(arguments: tuple[str, ...], words: str, run: Run) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert "given: " in err
    assert "needed: " in err
    assert words in err
    assert "Traceback" not in err


def test_is_a_module_and_leaves_with_code_two(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fanin", "plan", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("given: ")
