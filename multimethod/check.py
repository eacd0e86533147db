"""Is a spec right? What can be told without torch, and, if asked, what needs the model too."""

from __future__ import annotations

from pathlib import Path

from mmpack.multimethod.spec import SpecFile, load_spec


def check(spec: str | Path, *, model: bool = False) -> SpecFile:
    """Read a spec and check it. Raises SpecError with every mistake in it.

    model: also make the model and look for all that a build finds wrong before it compiles (see
    `driver/examine.py`), which takes torch and runs each method once. Raises one ModelError (or
    FlowError) with all of it.
    """
    spec_file = load_spec(spec)
    if model:
        from mmpack.multimethod.driver.examine import examine

        examine(spec_file)
    return spec_file
