"""The pytest plugin: a fixture that judges how a model starts. It loads neither torch nor more of fanin by itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

OPTION = "fanin_ignore"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Codes to ignore everywhere, from the command line and from the configuration."""
    words = "codes, or their beginnings, that the fixture assert_healthy ignores, with commas: F4,F209"
    parser.getgroup("fanin").addoption("--fanin-ignore", default="", metavar="CODES", help=words)
    parser.addini(OPTION, words, default="")


@pytest.fixture
def assert_healthy(pytestconfig: pytest.Config) -> Callable[..., None]:
    """`fanin.testing.assert_healthy`, which also ignores the codes of ``--fanin-ignore`` and ``fanin_ignore``."""
    from fanin import testing

    asked = f"{pytestconfig.getoption('--fanin-ignore')} {pytestconfig.getini(OPTION)}"
    everywhere = [code for code in re.split(r"[,\s]+", asked) if code]

    def check(model: Any, inputs: Any = None, *, ignore: tuple[str, ...] = (), **settings: Any) -> None:
        __tracebackhide__ = True  # this frame adds nothing to a failed test's report
        testing.assert_healthy(model, inputs, ignore=(*everywhere, *ignore), **settings)

    return check
