"""Python of the user's, run: what it raises is told in one message, with the line it came from.

    spec.yaml:9:5: methods.f.inputs: running it on x float32[2, 3] failed: RuntimeError: mat1 and …
      at model.py:12, in forward: return self.linear(x)

A traceback would mostly show the frames of torch and of mmpack.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmpack.multimethod.compile.imports import importable
from mmpack.multimethod.compile.sources import is_installed
from mmpack.multimethod.errors import MmpackError, ModelError
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.spec.mistakes import Keys

_OWN = str(Path(__file__).parents[1])
_STDLIB = sysconfig.get_paths()["stdlib"]


@contextmanager
def users_code(
    spec_file: SpecFile, where: Keys, doing: str, kind: type[MmpackError] = ModelError
) -> Iterator[None]:
    """The user's Python runs in the block, and may import what lies beside the spec. What it raises
    becomes a `kind` at that place of the spec: "<doing> failed: …"."""
    try:
        with importable(spec_file.folder):
            yield
    except MmpackError:
        raise
    except (Exception, SystemExit) as error:
        message = f"{doing} failed: {told(error, spec_file.folder)}"
        raise kind(str(spec_file.mistake(where, message))) from error


def told(error: BaseException, folder: Path) -> str:
    """An exception's type and message, and the innermost line of the user's own code that it came
    through. Paths below `folder` are shown like it."""
    message = str(error).strip()
    if isinstance(error, SyntaxError):
        message = error.msg
    message = message.replace("\n", "\n  ")
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename is not None:
        place = f"{_shown(error.filename, folder)}:{error.lineno}: {(error.text or '').strip()}"
        return f"{text}\n  at {place}"
    frame = _blamed(error)
    if frame is None:
        return text
    where = f"{_shown(frame.filename, folder)}:{frame.lineno}, in {frame.name}"
    return f"{text}\n  at {where}: {frame.line}" if frame.line else f"{text}\n  at {where}"


def _blamed(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost frame of the user's; failing that, of a package that the user called."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_foreign(f.filename)]
    own = [frame for frame in frames if not is_installed(frame.filename)]
    return next(reversed(own or frames), None)


def _is_foreign(path: str) -> bool:
    """Whether code is Python's own, torch's or mmpack's, which the user cannot mend."""
    if path.startswith(("<", _OWN)):
        return True
    if not is_installed(path):
        return path.startswith(_STDLIB)
    parts = Path(path).parts
    return any(name in parts for name in ("torch", "executorch", "functorch", "attr", "cattrs"))


def _shown(path: str, folder: Path) -> str:
    try:
        return str(folder / Path(path).resolve().relative_to(folder.resolve()))
    except ValueError:
        return path
