"""Can a process of this machine have all methods of a program loaded at once?

Memory apart, a backend may limit that: QNN's simulator does (`targets/qnn_room.py`). A build that
verifies its program promises that it runs here, and refuses one that does not fit, before anything
is compiled if the number of methods alone tells. Elsewhere there may be more room.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpack.multimethod.driver.parts import Parts
from mmpack.multimethod.errors import TargetError
from mmpack.multimethod.link import PteFile
from mmpack.multimethod.link.extents import delegate_extents
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.targets import BACKENDS, Backend

ADVICE = (
    "have one method do the work of several, or make several programs; `--no-verify` builds it all "
    "the same, for a machine with more room"
)


def require_room_for_methods(spec_file: SpecFile) -> None:
    """Raise TargetError, with the line of the first target concerned, if a backend is given more
    methods than it can have loaded, be they ever so small."""
    for backend, methods in _limited(spec_file):
        assert backend.room is not None
        least = backend.takes(0)
        if len(methods) * least > backend.room:
            message = (
                f"{len(methods)} methods are for {backend.name}, of whose graphs a process of this "
                f"machine can have at most {backend.room // least} loaded at once: {ADVICE}"
            )
            raise _error(spec_file, methods[0], message)


def require_room_for_objects(parts: Parts) -> None:
    """The same for what was compiled: a method may be several graphs, and each takes what its data
    do besides."""
    for backend, methods in _limited(parts.spec_file):
        assert backend.room is not None
        taken = [backend.takes(data) for m in methods for data in _data(parts, m, backend)]
        if sum(taken) > backend.room:
            message = (
                f"the {len(methods)} methods for {backend.name} are {len(taken)} graphs, which "
                f"take {_mb(sum(taken))} when they are loaded; all that a process of this machine "
                f"has loaded can take {_mb(backend.room)}: {ADVICE}"
            )
            raise _error(parts.spec_file, methods[0], message)


def _limited(spec_file: SpecFile) -> list[tuple[type[Backend], Sequence[str]]]:
    """Backends with limited room that are used, each with its methods."""
    used: dict[str, list[str]] = {}
    for name, method in spec_file.methods.items():
        used.setdefault(spec_file.spec.targets[method.target].backend, []).append(name)
    return [(BACKENDS[b], methods) for b, methods in used.items() if BACKENDS[b].room is not None]


def _data(parts: Parts, method: str, backend: type[Backend]) -> list[int]:
    """Bytes of data of each delegate in a method's object."""
    with PteFile.open(parts.objects.by_name[method].path) as file:
        (plan,) = file.plans
        extents = list(delegate_extents(file, plan))
        pairs = zip(plan.delegates or (), extents, strict=True)
        return [extent.size for delegate, extent in pairs if delegate.id == backend.delegate]


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _error(spec_file: SpecFile, method: str, message: str) -> TargetError:
    keys = ("targets", spec_file.methods[method].target, "backend")
    return TargetError(str(spec_file.mistake(keys, message)))
