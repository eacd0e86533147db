"""Methods that share a buffer, held to one scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmpack.multimethod.errors import LinkError
from mmpack.multimethod.link.manifest import MethodRecord, StateRecord
from mmpack.multimethod.scale import disagreement


def require_one_scale(state: Iterable[StateRecord], methods: Mapping[str, MethodRecord]) -> None:
    """Raise LinkError, naming two methods and their scales, for every buffer that methods share
    and quantize differently. One that computes with it in float has no scale."""
    wrong = []
    for record in state:
        if len(record.methods) < 2:
            continue
        found = [
            (method, scale)
            for method in record.methods
            for kind, name, scales in (methods[method].scales if method in methods else ())
            if (kind, name) == ("state", record.name)
            for scale in scales
        ]
        if differing := disagreement(found):
            (first, one), (second, two) = differing
            wrong.append(
                f"buffer {record.name!r} is shared, but its scales are not the same: {one} in "
                f"method {first!r}, {two} in method {second!r}; build both from one spec, which "
                "gives them one scale"
            )
    if wrong:
        raise LinkError("\n".join(wrong))
