"""Is a spec right? What can be told without torch, and, if asked, what needs the model too."""

from __future__ import annotations

from pathlib import Path

from mmpack.multimethod.spec import SpecFile, load_spec


def check(spec: str | Path, *, model: bool = False) -> SpecFile:
    """Read a spec and check it. Raises SpecError with every mistake in it.

    model: also make the model, load its weights, find every module, make every wrapper and run
    the sample, which takes torch; raises ModelError for what is wrong there.
    """
    spec_file = load_spec(spec)
    if model:
        from mmpack.multimethod.compile.model import load_model
        from mmpack.multimethod.compile.unit import make_units

        make_units(spec_file, load_model(spec_file))
    return spec_file
