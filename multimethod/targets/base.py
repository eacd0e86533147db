"""What a backend must tell mmpack about itself. One file a backend; see `portable.py`.

The files of this room are imported to read a spec, so torch and executorch are imported inside
the functions that need them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import cattrs
from attrs import frozen

from mmpack.multimethod.signature import Dim
from mmpack.multimethod.spec.records import InputSpec, MethodSpec


@frozen
class Availability:
    """Whether a backend can build and run on this machine. `remedy` is the command that would
    change a "no", `detail` what was found."""

    builds: bool
    runs: bool
    detail: str
    remedy: str | None = None


class Backend(ABC):
    """One backend. Its options are the fields of `Options`, an attrs record."""

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type]

    @classmethod
    @abstractmethod
    def available(cls) -> Availability:
        """Is it here? Looks, imports and asks the runtime, but compiles nothing."""

    @classmethod
    @abstractmethod
    def partitioners(cls, options: Any) -> list[Any]:
        """Partitioners for `to_edge_transform_and_lower`; [] delegates nothing."""

    @classmethod
    @abstractmethod
    def tolerance(cls, options: Any) -> float:
        """Largest error against eager PyTorch, relative as in `compare.difference`, that is still
        a right answer."""

    @classmethod
    def delegates(cls) -> bool:
        """Whether a method on this target is expected to be delegated at all."""
        return True

    @classmethod
    def refuses(
        cls,
        options: Any,
        method: MethodSpec,
        inputs: Mapping[str, InputSpec],
        dims: Mapping[str, Dim],
    ) -> str | None:
        """Why this method cannot go on this target, as far as the spec alone tells, or None."""
        return None

    @classmethod
    def options(cls, given: Mapping[str, Any]) -> Any:
        """The options as the backend's own record."""
        return cattrs.structure(dict(given), cls.Options)
