"""All tests here run on both engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmpack.multimethod.runtime.looks import REMEMBERED, Looks, looks


@pytest.fixture(autouse=True)
def engine(both_engines: str) -> str:
    """The name of the engine that `load` takes."""
    return both_engines


@pytest.fixture
def remembering(engine: str) -> Callable[..., Looks]:
    """What remembers the inputs of a method's calls on that engine, so many of them."""
    if engine == "stock":
        return looks

    def native(most: int = REMEMBERED) -> Looks:
        from mmpack.multimethod.runtime.native.build import build, extension

        return Looks(*extension(build()).looks(most=most))

    return native
