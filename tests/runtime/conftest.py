"""All tests here run on both engines."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def engine(both_engines: str) -> str:
    """The name of the engine that `load` takes."""
    return both_engines
