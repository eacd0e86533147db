"""All tests here run on the native engine."""

from __future__ import annotations

import pytest

from mmpack.multimethod.runtime import engines
from mmpack.multimethod.runtime.engine import Engine


@pytest.fixture(autouse=True)
def engine(
    automatic: None, native_engine: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> type[Engine]:
    """That which `load` takes."""
    monkeypatch.setattr(engines, "_automatic", lambda: native_engine)
    return native_engine
