"""The page and the picture: self-contained, complete, and readable by those who cannot see them."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from fanin.errors import MissingExtraError
from fanin.race import Comparison, Run, Start
from fanin.reports import palette
from fanin.reports.curves import layer_lines, loss_lines, overlapping, rate_lines, spread_labels
from fanin.reports.race_page import page
from fanin.reports.scales import Scale


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """Two recipes: one falls, one stays; the second starts dead and diverges at the larger rate."""
    falling = tuple(2.3 * 0.97**step for step in range(100))
    runs = [
        Run("he <b>", lr, seed, tuple(v + seed / 10 for v in falling), accuracy=0.9)
        for lr in (0.1, 1.0)
        for seed in (0, 1, 2)
    ]
    runs += [Run("zero", 0.1, seed, (2.3,) * 100, accuracy=0.1) for seed in (0, 1, 2)]
    runs += [Run("zero", 1.0, seed, (2.3,), diverged=True) for seed in (0, 1, 2)]
    layers = tuple(f"{2 * index}" for index in range(5))
    starts = (
        Start("he <b>", layers, (1.0, 0.9, 0.8, 0.9, 1.0), (1.0, 0.9, 0.8, 0.9, 1.0), (0.1,) * 5),
        Start("zero", layers, (0.0,) * 5, (0.0,) * 5, (None,) * 5),
    )
    return Comparison(
        task="a task & its data",
        recipes=("he <b>", "zero"),
        lrs=(0.1, 1.0),
        seeds=(0, 1, 2),
        steps=100,
        batch_size=8,
        optimizer="sgd",
        chance=2.3026,
        chance_from="the entropy of the labels",
        runs=tuple(runs),
        starts=starts,
        notes=("interrupted: 3 of 4 runs were finished",),
    )


@pytest.fixture(scope="module")
def text(comparison: Comparison) -> str:
    return page(comparison)


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in order."""

    VOID = frozenset({"meta", "path", "line", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_page_needs_nothing_but_itself(text: str) -> None:
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", text)
    assert not [tag for tag, _ in read(text).tags if tag in ("script", "link", "iframe", "img", "object")]
    assert len(text.encode()) < 2_000_000


def test_page_says_everything(comparison: Comparison, text: str) -> None:
    words = " ".join(" ".join(read(text).words).split())
    for sentence in (*comparison.sentences, *comparison.notes, comparison.task):
        assert sentence in words
    for standing in comparison.standings:
        assert standing.recipe in words
        assert str(standing.verdict) in words
    assert "exactly 0 in every layer" in words
    assert "Points on the upper edge diverged" in words
    assert "stuck at chance" in words


def test_names_are_escaped(text: str) -> None:
    assert "he <b>" not in text
    assert "he &lt;b&gt;" in text


def test_figures_have_words_for_those_who_cannot_see_them(text: str) -> None:
    figures = [attributes for tag, attributes in read(text).tags if tag == "svg"]
    assert len(figures) == 5
    assert all(figure["role"] == "img" and len(figure["aria-label"] or "") > 40 for figure in figures)


def test_figures_follow_the_scheme(text: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--c0)" in drawings
    assert "var(--c1)" in drawings
    for shade in (*palette.LIGHT[:2], palette.TEXT, palette.GRID):
        assert shade not in drawings
    assert "prefers-color-scheme:dark" in text


def test_pictures(comparison: Comparison, tmp_path: Path) -> None:
    drawing = comparison.save(tmp_path / "race.svg").read_text(encoding="utf-8")
    assert drawing.startswith("<svg")
    assert "Training loss" in drawing
    assert comparison.save(tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")
    assert comparison.save(tmp_path / "race.html").stat().st_size > 10_000


def test_an_interrupted_race_has_a_page(comparison: Comparison) -> None:
    part = replace(comparison, runs=comparison.runs[:1], starts=())
    assert "he &lt;b&gt;" in page(part)


@pytest.mark.parametrize("package", ["altair", "vl_convert", "jinja2"])
def test_missing_packages_are_named(
    package: str, comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[report\]"'):
        comparison.save(tmp_path / "race.html")
    assert not (tmp_path / "race.html").exists()


def test_lines_hold_medians_and_ranges(comparison: Comparison) -> None:
    line = loss_lines(comparison)[0]
    assert line.recipe == "he <b>"
    assert len(line.points) == 100
    assert line.points[0].x == 1
    assert (line.points[0].low, line.points[0].y, line.points[0].high) == pytest.approx((2.3, 2.4, 2.5))
    zero = rate_lines(comparison)[1]
    assert zero.points[1].y == float("inf")


def test_zeros_are_told_apart_from_what_is_no_number(comparison: Comparison) -> None:
    lines, remark = layer_lines(comparison, "activation_rms")
    assert [line.recipe for line in lines] == ["he <b>"]
    assert remark == "zero: exactly 0 in every layer, below any logarithmic axis."
    assert layer_lines(comparison, "gradient_rms")[1] == "zero: not a number in any layer."


def test_overlapping_lines_are_named(comparison: Comparison) -> None:
    twice = replace(comparison, recipes=("zero", "twin"), starts=())
    twins = tuple(
        replace(run, recipe=name) for run in comparison.runs if run.recipe == "zero" for name in twice.recipes
    )
    assert overlapping(loss_lines(replace(twice, runs=twins)), 3.0) == [["zero", "twin"]]
    assert overlapping(loss_lines(comparison), 3.0) == []


@pytest.mark.parametrize("wanted", [[0.0] * 5, [100.0, 100.0, 100.0], [3.0, 50.0, 51.0, 52.0, 99.0], [40.0]])
def test_labels_do_not_collide(wanted: list[float]) -> None:
    placed = spread_labels(wanted, 10, 100)
    ordered = sorted(placed)
    assert all(after - before >= 10 - 1e-9 for before, after in pairwise(ordered))
    assert all(0 <= place <= 100 for place in placed)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    assert [placed[index] for index in order] == ordered, "labels keep the order of their lines"


@pytest.mark.parametrize("scale", [Scale(0.0, 3.0), Scale(1e-20, 10.0, log=True)])
def test_scales_invert(scale: Scale) -> None:
    for share in (0.0, 0.06, 1.0):
        assert scale.share(scale.value(share)) == pytest.approx(share)
    assert scale.share(float("inf")) == 1


def test_colours_can_be_read() -> None:
    """Contrast of at least 3 : 1 with the card behind, which WCAG asks of graphics, and no colour twice."""
    for shades, paper in ((palette.LIGHT, "#f6f7f9"), (palette.DARK, "#1b2128")):
        assert len(set(shades)) == len(shades)
        for shade in shades:
            light, dark = sorted((luminance(shade), luminance(paper)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3, shade


def luminance(shade: str) -> float:
    parts = [int(shade[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
