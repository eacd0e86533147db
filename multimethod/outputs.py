"""An output is not to take the place of what it is made from."""

from __future__ import annotations

import os
from collections.abc import Iterable

from mmpack.multimethod.errors import OutputError

AnyPath = str | os.PathLike[str]


def refuse_overwriting(output: AnyPath, inputs: Iterable[AnyPath]) -> None:
    """Raise OutputError if `output` is one of the files that it is to be made from."""
    for path in inputs:
        if os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path):
            raise OutputError(f"{output}: is an input of this command; name another output")
