"""What a verification finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from attrs import field, frozen

from mmpack.multimethod.errors import CallError, ExecutionError, FlowError, VerifyError
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.spec.mistakes import Keys


@frozen
class Checked:
    """How far one method, or flow, is from eager PyTorch: the largest error of any output, relative
    as in `compare.difference`, where it was found, and what is allowed. A flow without a reference
    is not compared, and has no error.

    A quantized one is held to the signal-to-quantization-noise ratio of its worst output, `sqnr`,
    of which `least_sqnr` is allowed, both in dB; `where` is of that output then, and `tolerance`
    infinite.

    place: file, line and column of the spec where the method or flow stands.
    """

    name: str
    error: float | None
    tolerance: float
    where: str
    place: str = field(default="", kw_only=True)
    sqnr: float | None = field(default=None, kw_only=True)
    least_sqnr: float | None = field(default=None, kw_only=True)

    @property
    def compared(self) -> bool:
        return self.error is not None

    @property
    def right(self) -> bool:
        if self.error is None:
            return True
        if self.least_sqnr is not None:
            return self.sqnr is not None and self.sqnr >= self.least_sqnr
        return self.error <= self.tolerance

    def __str__(self) -> str:
        place = f"{self.place}: " if self.place else ""
        if self.least_sqnr is not None:
            return (
                f"{place}{self.name}: {self.where} has a signal-to-quantization-noise ratio of "
                f"{self.sqnr:.1f} dB against eager PyTorch, at least {self.least_sqnr:.1f} dB is "
                "wanted"
            )
        return (
            f"{place}{self.name}: {self.where} is off by {self.error:.3g} from eager PyTorch, "
            f"allowed {self.tolerance:.3g}"
        )


@frozen
class Verified:
    """A program held against its model: every method, by name, and every flow."""

    methods: Mapping[str, Checked]
    flows: tuple[Checked, ...]

    def require_right(self) -> None:
        """Raise VerifyError that names everything that is not right."""
        wrong = [c for c in (*self.methods.values(), *self.flows) if not c.right]
        if wrong:
            raise VerifyError("\n".join(map(str, wrong)))


@contextmanager
def spec_place(spec_file: SpecFile, keys: Keys) -> Iterator[None]:
    """Say where in the spec the method or flow stands that an error of the block is about."""
    try:
        yield
    except (CallError, ExecutionError, FlowError) as error:
        if str(error).startswith(str(spec_file.path)):
            raise  # it says so itself
        raise type(error)(str(spec_file.mistake(keys, str(error), at_key=True))) from error


def place_of(spec_file: SpecFile, keys: Keys) -> str:
    """`file:line:column` of what stands at some keys of a spec."""
    line, column = spec_file.locate(keys, at_key=True)
    return f"{spec_file.path}:{line}:{column}"
