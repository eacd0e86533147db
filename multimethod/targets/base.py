"""What a backend must tell mmpack about itself. One file a backend; see `portable.py`.

The files of this room are imported to read a spec, so torch and executorch are imported inside
the functions that need them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen
from cattrs.errors import AttributeValidationNote

from mmpack.multimethod.signature import Dim
from mmpack.multimethod.spec.records import InputSpec, MethodSpec

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager
    from torch.export import ExportedProgram


CPU = "cpu"
"""The lane of what runs on the CPU, and of what is not known to run elsewhere."""


@frozen
class Availability:
    """Whether a backend can build and run on this machine. `remedy` is the command that would
    change a "no", also one that only trying it brings up; `detail` what was found."""

    builds: bool
    runs: bool
    detail: str
    remedy: str | None = None


@frozen
class Refusal:
    """Why a method cannot go on a target. `at`: the keys, below the method's, of what stands
    against it; none for the target itself."""

    message: str
    at: tuple[str | int, ...] = ("target",)


def in_blocks(_: Any, attribute: Any, group: int) -> None:
    """Validator of an option that says how many weights share a scale."""
    if group < 32 or group % 32:
        error = ValueError(f"expected a multiple of 32, got {group}")
        error.add_note(AttributeValidationNote("", attribute.name, int))  # where in the spec it is
        raise error


class Backend(ABC):
    """One backend. Its options are the fields of `Options`, an attrs record."""

    name: ClassVar[str]
    Options: ClassVar[type]
    lane: ClassVar[str] = CPU
    """The processor that runs it, unless a target says another."""
    delegate: ClassVar[str | None] = None
    """What ExecuTorch calls its delegate; None for one that delegates nothing."""
    external: ClassVar[bool] = False
    """Whether its libraries are not a part of ExecuTorch. Then a healthy machine may do without
    it, `prepare_runtime` brings them, and they print what they please."""
    room: ClassVar[int | None] = None
    """Bytes that all its graphs which one process of this machine has loaded can take together;
    None if memory alone limits them."""
    proof: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Options for the small graph with which `mmpack doctor` proves an external backend."""

    @classmethod
    @abstractmethod
    def available(cls) -> Availability:
        """Is it here? Looks, imports and asks the runtime, but compiles nothing."""

    @classmethod
    def environment(cls, options: Any) -> dict[str, str]:
        """Environment variables that a process which lowers for this backend must start with.

        Raises TargetError, with the remedy, if the backend is not here to build with.
        """
        return {}

    @classmethod
    def edge(cls, program: ExportedProgram, method: str, options: Any) -> EdgeProgramManager:
        """An exported program in the edge dialect, with what the backend takes delegated."""
        from executorch.exir import to_edge_transform_and_lower

        return to_edge_transform_and_lower(
            {method: program}, partitioner={method: cls.partitioners(options)}
        )

    @classmethod
    def prepare(cls, program: ExportedProgram, method: str, options: Any) -> dict[str, Any]:
        """Before `edge`: change the program, in place, as the backend wants it. What it has to tell
        of that is plain data for the manifest. Raises CompileError if it cannot be done rightly."""
        return {}

    @classmethod
    @contextmanager
    def watched(
        cls, program: ExportedProgram, method: str, options: Any
    ) -> Iterator[dict[str, Any]]:
        """Around `edge`: what the backend has to tell besides, plain data for the manifest, filled
        when `edge` is done. Raises CompileError if that came out as it must not be shipped."""
        yield {}

    @classmethod
    def partitioners(cls, options: Any) -> list[Any]:
        """Partitioners for `edge`, where no more is needed than that."""
        return []

    @classmethod
    def prepare_runtime(cls) -> None:
        """Make this process able to run what was lowered for the backend. Called once torch and the
        executorch runtime are loaded, before the first method that needs it, possibly often.

        Raises TargetError, with the remedy, if the backend is not here to run with.
        """
        return None

    @classmethod
    def identity(cls, head: bytes) -> slice | None:
        """Which bytes of a delegate's data, of which `head` is the beginning, the runtime knows
        it by: it makes one context of all data in the process that have the same there, and
        destroys it with the first of them. None if every load makes its own."""
        return None

    @classmethod
    def takes(cls, data: int) -> int:
        """Bytes of `room` that a delegate takes of whose data there are so many."""
        return data

    @classmethod
    def full(cls, printed: str) -> str | None:
        """What to say if a method was not loaded since `room` is taken, which is told by what the
        backend's libraries printed; None if it was for another reason."""
        return None

    @classmethod
    @abstractmethod
    def tolerance(cls, options: Any) -> float:
        """Largest error against eager PyTorch, relative as in `compare.difference`, that is still
        a right answer."""

    @classmethod
    def sqnr(cls, options: Any) -> float | None:
        """Least signal-to-quantization-noise ratio, in dB, that is still a right answer; None for
        a precision that is not quantized, which is held to `tolerance`."""
        return None

    @classmethod
    def calibrated(cls, options: Any) -> bool:
        """Whether the precision takes the ranges of activations from example inputs."""
        return False

    @classmethod
    def quantizer(cls, options: Any) -> Any:
        """What annotates an exported program for PT2E quantization (a torchao `Quantizer`), or
        None. Asked in the process that lowers, started with `environment`."""
        return None

    @classmethod
    def linear_weights(cls, options: Any) -> Any:
        """What torchao's `quantize_` is to do to linear layers (an `AOBaseConfig`), or None."""
        return None

    @classmethod
    def embedding_weights(cls, options: Any) -> Any:
        """What torchao's `quantize_` is to do to embedding tables (an `IntxWeightOnlyConfig` of
        int8 for each row, or of int4 for each group), or None."""
        return None

    @classmethod
    def embedding_group(cls, options: Any) -> int | None:
        """How many numbers of a table's row share a scale there; None for all of them."""
        return None

    @classmethod
    def refuses(
        cls,
        options: Any,
        method: MethodSpec,
        inputs: Mapping[str, InputSpec],
        dims: Mapping[str, Dim],
    ) -> Refusal | None:
        """Why this method cannot go on this target, as far as the spec alone tells, or None."""
        return None

    @classmethod
    def options(cls, given: Mapping[str, Any]) -> Any:
        """The options, which were checked with the spec, as the backend's own record."""
        from mmpack.multimethod.spec.structure import structure  # which asks this room

        made, wrong = structure(dict(given), cls.Options)
        if wrong:
            raise ValueError("; ".join(finding.message for finding in wrong))
        return made
