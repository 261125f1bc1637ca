"""Colours that can be told apart, on white and on black, and by readers who see fewer of them."""

from __future__ import annotations

LIGHT = ("#0b66c3", "#526173", "#0f766e", "#a21caf", "#4d7c0f", "#c2410c", "#6d28d9", "#be123c")
DARK = ("#6cb2ff", "#a8b4c4", "#4fd1c0", "#ee8cf2", "#a3d95a", "#ff9b63", "#b79dff", "#ff8fa3")
DASHES = ((1, 0), (6, 3), (2, 2))
"""For more recipes than colours: solid, dashed, dotted."""

TEXT = "#1b1f24"
GRID = "#d5dae0"
MUTED = "#5b6470"


def color(index: int) -> str:
    """The colour of the recipe in this place, on white."""
    return LIGHT[index % len(LIGHT)]


def dash(index: int) -> tuple[int, int]:
    """The dash pattern of the recipe in this place."""
    return DASHES[index // len(LIGHT) % len(DASHES)]


def themed(svg: str) -> str:
    """The same drawing in colours that the page's style sheet decides, so that it follows a dark scheme.

    >>> themed('<path stroke="#0b66c3"/>')
    '<path stroke="var(--c0)"/>'
    """
    variables = {shade: f"var(--c{index})" for index, shade in enumerate(LIGHT)}
    variables |= {TEXT: "currentColor", GRID: "var(--grid)", MUTED: "var(--muted)"}
    for shade, variable in variables.items():
        svg = svg.replace(f'"{shade}"', f'"{variable}"')
    return svg


def style_sheet() -> str:
    """The variables of `themed` for a light and a dark scheme."""
    light = "".join(f"--c{index}:{shade};" for index, shade in enumerate(LIGHT))
    dark = "".join(f"--c{index}:{shade};" for index, shade in enumerate(DARK))
    light += f"--grid:{GRID};--muted:{MUTED};--ink:{TEXT};--paper:#fff;--card:#f6f7f9;"
    dark += "--grid:#343b44;--muted:#9aa5b1;--ink:#e6eaef;--paper:#12161b;--card:#1b2128;"
    return f":root{{color-scheme:light dark;{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
