"""The page of a diagnosis: complete, self-contained, quick, and drawn by a real browser."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import nn

from fanin.diagnoses import Diagnosis, Edit, Finding, Severity
from fanin.diagnosing import diagnose, judge
from fanin.errors import MissingExtraError
from fanin.measuring.measure import measure
from fanin.observations import Kind, LayerSignal
from fanin.reports.columns import STATISTICS, columns
from fanin.reports.depth import heat_strip, line, marks, profile_chart, sections
from fanin.reports.diagnosis_page import page
from fanin.reports.places import MOST_LAYERS, Places
from fanin.reports.plan_rows import plan_table
from fanin.reports.theory import predict
from fanin.schemes import Zeros
from fanin.signals import Signals

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "<script>alert(1)</script>"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain(
    depth: int, width: int, gain: float, activation: Callable[[], nn.Module] = nn.ReLU, bias: float = 0.0
) -> nn.Sequential:
    """A plain chain of equal linear layers whose weights are drawn with a gain."""
    generator = seeded(depth)
    parts: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, 0, gain / math.sqrt(width), generator=generator)
        nn.init.normal_(linear.bias, 0, bias, generator=generator)
        parts += [linear, activation()]
    return nn.Sequential(*parts[:-1])


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(7))


@pytest.fixture(scope="module")
def vanishing() -> Diagnosis:
    """A deep plain net whose signal and gradient vanish."""
    return diagnose(chain(30, 64, math.sqrt(1 / 3), bias=0.07), noise(32, 64))


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.fc(self.norm(x)))


def synthetic(count: int) -> Diagnosis:
    """A record of many layers with every statistic, and a finding at every tenth of them."""
    small = diagnose(nn.Sequential(Block(), nn.Linear(16, 4)), noise(8, 16))
    layers = tuple(
        LayerSignal(
            index=index,
            name=f"blocks.{index // 3}.part{index % 3}",
            module=f"blocks.{index // 3}",
            target=("linear", "relu", "add")[index % 3],
            kind=(Kind.WEIGHT, Kind.ACTIVATION, Kind.SUM)[index % 3],
            shape=(64, 128, 512),
            rms=math.exp(math.sin(index)),
            spread=0.1 + index % 7,
            offset=0.01,
            zero=index % 11 / 11,
            saturated=index % 5 / 5,
            stuck=index % 3 / 3,
            dead=index % 6 / 6,
            sample_cosine=math.cos(index),
            position_cosine=math.sin(index),
            entropy=index % 13 / 13,
            stream=0 if index % 3 == 2 else None,
            branch_rms=1.0,
            stream_rms=2.0,
            stream_start=0.7,
            grad_rms=math.exp(-index % 17),
            grad_zero=index % 9 / 9,
        )
        for index in range(count)
    )
    found = tuple(
        Finding("F303", Severity.WARNING, layers[index].name, "72% of the units are zero", "why", "remedy")
        for index in range(0, count, 10)
    )
    return replace(small, findings=found, signals=replace(small.signals, layers=layers))


# What the page says


def test_page_needs_nothing_but_itself(vanishing: Diagnosis) -> None:
    text = page(vanishing)
    assert not re.search(r"https?:|//\w|@import|url\((?!#)|src=|<link", text)
    assert "default-src 'none'" in text


def test_page_says_everything(vanishing: Diagnosis, tmp_path: Path) -> None:
    text = vanishing.save(tmp_path / "report.html").read_text(encoding="utf-8")
    assert {"F301", "F402"} <= set(vanishing.codes)
    for finding in vanishing.findings:
        assert finding.code in text
        assert finding.seen.partition("'")[0] in text
    for layer in vanishing.signals.layers:
        assert f'<th scope="row">{layer.name}<td class="words">{layer.target}' in text
    assert "Activations that vanish" in text
    assert "looks linear" in text, "the plan shows the remedies"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_healthy_page_says_so() -> None:
    diagnosis = judge(measure(nn.Sequential(Block(), nn.Linear(16, 4)), noise(8, 16)))
    text = page(replace(diagnosis, findings=()))
    assert "Healthy: nothing found." in text
    assert 'id="findings"' not in text
    assert "residual stream" in text


def test_a_page_of_values_alone_has_no_charts() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    nn.init.constant_(model[0].weight, 0.5)
    diagnosis = diagnose(model)
    text = page(diagnosis)
    assert "nothing was run" in text
    assert "<svg" not in text
    assert "<script" not in text
    assert re.search(r'<a href="#P\d+">0.weight</a>', text), "findings lead to the plan's row"
    assert "The plan" not in page(replace(diagnosis, plan=None))


def test_a_remedy_that_does_not_fit_the_plan_is_told() -> None:
    diagnosis = diagnose(nn.Sequential(nn.Linear(8, 8)), noise(4, 8))
    wrong = Finding("F101", Severity.ERROR, "0.weight", "seen", "why", "remedy", edits=(Edit("nowhere", Zeros()),))
    table = plan_table(replace(diagnosis, findings=(wrong,)))
    assert table is not None
    assert "could not be put into this plan" in table.note
    assert table.edits == 0


def test_a_missing_package_is_named(vanishing: Diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[report\]"'):
        vanishing.save(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_names_are_escaped(vanishing: Diagnosis) -> None:
    layers = tuple(replace(layer, name=f"{HOSTILE}{layer.name}") for layer in vanishing.signals.layers)
    findings = (replace(vanishing.findings[0], place=layers[3].name, seen=f"seen {HOSTILE}"),)
    text = page(replace(vanishing, findings=findings, signals=replace(vanishing.signals, layers=layers)))
    assert HOSTILE not in text
    assert text.count("&lt;script&gt;alert(1)") > len(layers)
    assert text.count("<script") == 1


def test_findings_of_one_code_share_a_card_and_lead_to_their_layers(vanishing: Diagnosis) -> None:
    parameter = Finding("F404", Severity.WARNING, "4.weight", "seen", "why", "remedy", places=("6.bias", "nowhere"))
    places = Places(replace(vanishing, findings=(parameter, replace(parameter, place="5"))), {})
    (card,) = places.cards
    assert [[spot.layer for spot in item.spots] for item in card.items] == [[4, 6, None], [5, 6, None]]
    assert places.marked["warning"] == {4, 5, 6}
    assert places.at[4] == {"F404": Severity.WARNING}


def test_remedies_put_in_together_give_the_plan_of_one_by_one(vanishing: Diagnosis) -> None:
    plan = vanishing.plan
    assert plan is not None
    for finding in reversed(vanishing.findings):
        for edit in finding.edits:
            plan = edit.apply(plan, f"{finding.code}: {finding.remedy}")
    assert vanishing.fix() == plan


def test_plan_rows_are_few(vanishing: Diagnosis) -> None:
    table = plan_table(vanishing)
    assert table is not None
    assert table.edits == 60
    assert sum(len(row.names) for row in table.rows) == 60
    assert len(table.rows) < 10
    assert not any("before:" in row.reason for row in table.rows)
    assert set(table.anchors) == {parameter.name for parameter in vanishing.signals.parameters}


# What is drawn


def test_marks_and_lines_skip_what_is_not_there() -> None:
    assert marks({0: 10}, [0, 1]) == "M1 10h0"
    assert line({0: 10, 3: 20}, range(4)) == "M1 10L7 20"
    assert line({0: 10}, [0]) == ""


def test_every_layer_has_a_mark(vanishing: Diagnosis) -> None:
    layers = vanishing.signals.layers
    chart = profile_chart("name", "title", layers, [layer.rms for layer in layers], {}, {})
    assert chart is not None
    assert sum(stroke.path.count("M") for stroke in chart.strokes if stroke.name.startswith("mark")) == len(layers)
    assert profile_chart("name", "title", layers, [None] * len(layers), {}, {}) is None


def test_what_differs_between_inputs_is_drawn_where_it_is_not_all(vanishing: Diagnosis) -> None:
    layers = vanishing.signals.layers
    sizes = [layer.rms for layer in layers]
    chart = profile_chart("name", "title", layers, sizes, {}, {}, [layer.varying for layer in layers])
    assert chart is not None
    assert chart.parted, "the biases stay while the signal vanishes"
    (drawn,) = (stroke for stroke in chart.strokes if stroke.name == "differing")
    assert drawn.path.count("L") == sum(layer.kind == Kind.WEIGHT for layer in layers) - 1
    whole = profile_chart("name", "title", layers, sizes, {}, {}, sizes)
    assert whole is not None
    assert not whole.parted


def test_zeros_lie_on_the_lower_edge_and_are_counted(vanishing: Diagnosis) -> None:
    layers = vanishing.signals.layers[:3]
    chart = profile_chart("name", "title", layers, [1.0, 0.0, 0.1], {}, {})
    assert chart is not None
    assert chart.zeros == 1
    assert "M3 1000h0" in "".join(stroke.path for stroke in chart.strokes)


def test_heat_covers_every_value_once(vanishing: Diagnosis) -> None:
    for column in columns(vanishing.signals, vanishing.signals.layers):
        covered: list[int] = []
        for stroke in heat_strip(column):
            for first, wide in re.findall(r"M(\d+) 0h(\d+)", stroke.path):
                covered += range(int(first), int(first) + int(wide))
        assert sorted(covered) == [place for place, value in enumerate(column.values) if value is not None]


def test_columns_without_anything_to_say_are_left_out(vanishing: Diagnosis) -> None:
    shown = {column.statistic.name for column in columns(vanishing.signals, vanishing.signals.layers)}
    assert {"RMS", "zero", "samples alike", "gradient RMS", "weight gradient"} <= shown
    assert not {"not finite", "entropy", "positions alike", "stream growth"} & shown
    every = synthetic(30).signals
    assert len(columns(every, every.layers)) >= len(STATISTICS) - 3


def test_sections_name_the_parts() -> None:
    layers = synthetic(30).signals.layers
    assert [(part.name, part.path, part.width) for part in sections(layers)[:2]] == [
        ("blocks.0", "blocks.0", 3),
        ("1", "blocks.1", 3),
    ]
    assert sections(layers[:3]) == []
    deeper = [replace(layer, module=f"model.decoder.{layer.module}") for layer in layers]
    assert [part.name for part in sections([replace(layers[0], module="model.embed"), *deeper])[:3]] == [
        "embed",
        "blocks.0",
        "1",
    ]


# Theory


def log_ratios(measured: dict[int, float], predicted: dict[int, float]) -> list[float]:
    return [math.log(measured[index] / value) for index, value in predicted.items()]


@pytest.mark.parametrize(
    ("activation", "gain", "bias"),
    [(nn.ReLU, math.sqrt(2), 0.0), (nn.Tanh, 1.5, 0.1), (lambda: nn.LeakyReLU(0.3), 1.0, 0.0), (nn.Identity, 1.0, 0.2)],
)
def test_prediction_follows_the_measured_profile(activation: Callable[[], nn.Module], gain: float, bias: float) -> None:
    """Width 512: log RMS of layer l has a deviation of about √(5l/(4·512)), 0.12 at the last; √2 in a gain is far."""
    signals = measure(chain(12, 512, gain, activation, bias), noise(16, 512))
    found = predict(signals)
    assert found is not None
    assert len(found.rms) == len(found.gradients) == 12
    by_index = {layer.index: layer for layer in signals.layers}
    forward = log_ratios({index: by_index[index].rms for index in found.rms}, found.rms)
    backward = log_ratios({index: by_index[index].grad_rms or 0.0 for index in found.rms}, found.gradients)
    assert max(map(abs, forward)) < 0.35
    assert max(map(abs, backward)) < 0.35


def test_prediction_is_not_the_measurement() -> None:
    """Only the first layer's RMS and the last one's gradient are taken from the run."""
    signals = measure(chain(6, 64, 1.4), noise(16, 64))
    nudged = tuple(replace(layer, rms=layer.rms * 1.05) if layer.index else layer for layer in signals.layers)
    before, after = predict(signals), predict(replace(signals, layers=nudged))
    assert before is not None
    assert after is not None
    assert before.rms == after.rms


class Scaled(nn.Module):
    """A chain with a factor between its layers that no operation is recorded for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = chain(8, 128, 1.4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x) * 0.5
        return x


def shared() -> nn.Module:
    layer = nn.Linear(32, 32)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer)


def constant() -> nn.Module:
    model = chain(4, 32, 1.0)
    nn.init.constant_(model[2].weight, 0.1)
    return model


NOT_PLAIN: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: nn.Sequential(Block(), Block(), Block(), nn.Linear(16, 4)),
    "norm": lambda: nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(16, 16), nn.LayerNorm(16)))),
    "two activations": lambda: nn.Sequential(
        nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)
    ),
    "a hidden factor": Scaled,
    "shared weights": shared,
    "a constant weight": constant,
    "too short": lambda: chain(2, 16, 1.0),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_nothing_is_predicted_for_what_is_not_plain(name: str) -> None:
    model = NOT_PLAIN[name]()
    width = next(parameter.shape[-1] for parameter in model.parameters() if parameter.ndim > 1)
    diagnosis = diagnose(model, noise(16, width))
    assert predict(diagnosis.signals) is None
    assert "mean-field" not in page(replace(diagnosis, findings=()))


def test_convolutions_are_predicted_with_their_proviso() -> None:
    parts = [part for _ in range(5) for part in (nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.ReLU())]
    model = nn.Sequential(*parts)
    for seed, part in enumerate(model):
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, 0, math.sqrt(2 / (32 * 9)), generator=seeded(seed))
    found = predict(measure(model, noise(4, 32, 16, 16)))
    assert found is not None
    assert found.borders
    assert predict(Signals((), (), measure(model).graph)) is None


# Sizes


def test_a_thousand_layers_fit(vanishing: Diagnosis) -> None:
    for count in (1000, 4000, 20_000):
        diagnosis = synthetic(count)
        text = page(diagnosis)
        assert len(text.encode()) < 2_000_000
        assert len(Places(diagnosis, {}).layers) <= MOST_LAYERS
        assert ("layers are shown" in text) == (count > MOST_LAYERS)


# In the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("needs /usr/bin/chromium")
    with playwright.sync_playwright() as runner:
        started = runner.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a diagnosis in a browser that may load one file and nothing else, and that has no fault to report."""
    faults: list[str] = []
    contexts = []

    def open_page(diagnosis: Diagnosis, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        target = diagnosis.save(tmp_path / "report.html").as_uri()

        def only_the_page(route: Any) -> None:
            if route.request.url.partition("#")[0] == target:
                route.continue_()
            else:
                faults.append(f"asked for {route.request.url}")
                route.abort()

        context.route("**/*", only_the_page)
        tab = context.new_page()
        tab.on("console", lambda message: faults.append(message.text))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("dialog", lambda dialog: faults.append(dialog.message))
        tab.goto(target)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def test_charts_are_drawn(opened: Callable[..., Any], vanishing: Diagnosis) -> None:
    tab = opened(vanishing)
    for name in ("forward", "backward"):
        box = tab.locator(f"#{name}-chart").bounding_box()
        assert box["width"] > 300
        assert box["height"] > 100
        paths = tab.locator(f"#{name}-chart path[class^=mark]").evaluate_all("all => all.map(p => p.getAttribute('d'))")
        assert sum(path.count("M") for path in paths) == len(vanishing.signals.layers)
        assert tab.locator(f"#{name}-chart path.predicted").count() == 1
    assert tab.locator("#layers tbody tr").count() == len(vanishing.signals.layers)


def test_a_click_on_a_finding_shows_its_layer(opened: Callable[..., Any], vanishing: Diagnosis) -> None:
    tab = opened(vanishing)
    link = tab.locator("#F301 a[href^='#L']").first
    place = int(link.get_attribute("href").removeprefix("#L"))
    assert tab.locator(".here").count() == 0
    link.click()
    assert tab.locator("#layers tr.here").get_attribute("id") == f"L{place}"
    shown = tab.evaluate(
        """() => { const box = document.getElementById("box").getBoundingClientRect();
        const row = document.querySelector("tr.here").getBoundingClientRect();
        return row.top >= box.top && row.bottom <= box.bottom }"""
    )
    assert shown, "the row is within its box"
    at = tab.evaluate("Number(document.getElementById('charts').style.getPropertyValue('--at'))")
    assert at == pytest.approx(place / len(vanishing.signals.layers))
    style = "getComputedStyle(document.querySelector('.plot.tall'), '::after').display"
    assert tab.evaluate(style) == "block"
    assert vanishing.signals.layers[place].target in tab.locator("#readout").inner_text()
    assert tab.locator("#F301 li.here").count() == 1


def test_charts_and_keys_choose_layers_too(opened: Callable[..., Any], vanishing: Diagnosis) -> None:
    tab = opened(vanishing)
    tab.locator("#forward-chart").click()
    middle = len(vanishing.signals.layers) // 2
    assert tab.locator("tr.here").get_attribute("id") == f"L{middle}"
    tab.locator("#charts").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("tr.here").get_attribute("id") == f"L{middle + 1}"
    tab.keyboard.press("Home")
    assert tab.locator("tr.here").get_attribute("id") == "L0"


def test_a_finding_is_reached_by_keyboard(opened: Callable[..., Any], vanishing: Diagnosis) -> None:
    tab = opened(vanishing)
    tab.locator("#F301 a").first.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("tr.here").count() == 1


def test_without_script_links_mark_their_rows(opened: Callable[..., Any], vanishing: Diagnosis) -> None:
    tab = opened(vanishing, java_script_enabled=False)
    assert tab.locator("#readout").is_hidden()
    tab.locator("#F301 a").first.click()
    assert tab.locator("tr:target").count() == 1
    assert tab.locator("tr:target").is_visible()


def test_hostile_names_do_nothing(opened: Callable[..., Any], vanishing: Diagnosis) -> None:
    layers = tuple(replace(layer, name=f"{HOSTILE}{layer.name}") for layer in vanishing.signals.layers)
    tab = opened(replace(vanishing, findings=(), signals=replace(vanishing.signals, layers=layers)))
    tab.locator("#forward-chart").click()
    assert HOSTILE in tab.locator("#readout").inner_text()


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(opened: Callable[..., Any], vanishing: Diagnosis, width: int, scheme: str) -> None:
    tab = opened(vanishing, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("text=weights’ outputs").first.is_visible()


@pytest.mark.parametrize("width", [400, 1280])
def test_names_of_parts_do_not_overlap(opened: Callable[..., Any], width: int) -> None:
    """A part of one layer beside parts of many is too narrow for its name, which is then left to its title."""
    diagnosis = synthetic(100)
    layers = tuple(
        replace(layer, module=f"stem_{place}" if place < 4 else f"model.stages.{place // 32}")
        for place, layer in enumerate(diagnosis.signals.layers)
    )
    tab = opened(
        replace(diagnosis, findings=(), signals=replace(diagnosis.signals, layers=layers)),
        viewport={"width": width, "height": 800},
    )
    shown = tab.locator(".sections span").evaluate_all(
        """all => all.map(part => { const frame = part.getBoundingClientRect();
        const name = part.firstElementChild.getBoundingClientRect();
        return [part.title, name.top < frame.bottom, name.left >= frame.left && name.right <= frame.right] })"""
    )
    assert [title for title, visible, _ in shown if visible] == [f"model.stages.{stage}" for stage in range(4)]
    assert all(within for _, visible, within in shown if visible)


def test_a_thousand_layers_are_quick(opened: Callable[..., Any], vanishing: Diagnosis) -> None:
    """Against the machine's own pace: a page of 59 layers; generous, for loads come and go."""
    begun = perf_counter()
    small = opened(vanishing)
    pace = perf_counter() - begun
    small.close()
    begun = perf_counter()
    tab = opened(synthetic(1000))
    assert perf_counter() - begun < max(20 * pace, 2.0)
    took = tab.evaluate(
        """() => { const links = [...document.querySelectorAll("#F303 a[href^='#L']")].slice(0, 50);
        const begun = performance.now();
        for (const link of links) { link.click(); document.body.getBoundingClientRect() }
        return (performance.now() - begun) / links.length }"""
    )
    assert took < max(100.0, 1000 * pace), "milliseconds a click, with layout"
