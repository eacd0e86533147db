"""One walk along the steps of a flow, keeping what the flow has at each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from mmpack.multimethod.errors import nearest
from mmpack.multimethod.signature import DTYPES, ValueSpec
from mmpack.multimethod.spec.edges import agree, clash, settled, show
from mmpack.multimethod.spec.mistakes import Finding, Findings, Keys, unknown
from mmpack.multimethod.spec.partial import Draft
from mmpack.multimethod.spec.records import InputSpec, MethodSpec, StepSpec

POSITIONS = "positions"
"""What every flow provides: the running index of each row of the piece at hand, int64."""

_UNNAMED = re.compile(r"out(_[0-9]+)?")


class Walk:
    """values: name in the flow -> its first reader since it was given, if there was one.
    caches: cache -> the place where it is first appended to.
    open: a method ran whose outputs are not known, so any name may have been given.
    unseen: a method ran whose inputs are not known, so anything may have been read."""

    def __init__(self, draft: Draft, flow: str, cut: Mapping[str, str]) -> None:
        self.draft = draft
        self.flow = flow
        self.cut = cut
        self.dims = draft.spec.dims
        self.values: dict[str, ValueSpec | None] = {}
        self.caches: dict[str, Keys] = {}
        self.cut_readers: dict[str, ValueSpec | None] = {}
        self.cache_readers: dict[str, ValueSpec | None] = {}
        self.open = self.unseen = self.unnamed = False
        steps = (step.item for step in draft.flows[flow].steps)
        self.appended = frozenset(cache for step in steps for cache in step.append.values())

    def gives(self, name: str) -> bool:
        """Whether a step has given, or may have given, a value of that name."""
        known = name in self.values or self.open
        return known or (self.unnamed and _UNNAMED.fullmatch(name) is not None)

    def step(self, number: int, step: StepSpec) -> Findings:
        keys: Keys = ("steps", self.flow, number)
        yield from self.known(number, step)
        method = self.method(step.run)
        if method is not None:
            yield from self._names(step, method, keys)
        yield from self._reads(step, method, keys)
        for output, cache in step.append.items():
            self.caches.setdefault(cache, (*keys, "append", output))
        self._give(step, method)

    def known(self, number: int, step: StepSpec) -> Findings:
        """Whether there are the methods that a step names."""
        for key, name in (("run", step.run), ("last", step.last)):
            known = name is None or self.method(name) is not None
            if name is not None and not known and not self.draft.lost("methods", name):
                message = unknown("method", name, self.draft.methods)
                yield Finding(("steps", self.flow, number, key), message)

    def method(self, name: str | None) -> MethodSpec | None:
        expanded = self.draft.methods.get(name or "")
        return expanded.item if expanded is not None else None

    def _names(self, step: StepSpec, method: MethodSpec, keys: Keys) -> Findings:
        """The names on the method's side of `with`, `gives` and `append`, and those on the
        flow's side that would mean two things."""
        inputs = method.inputs if isinstance(method.inputs, dict) else None
        for name in step.with_:
            if inputs is not None and name not in inputs:
                message = f"{step.run}: {unknown('input', name, inputs)}"
                yield Finding((*keys, "with", name), message, at_key=True)
        for key, given in (("gives", step.gives), ("append", step.append)):
            for name, to in given.items():
                here = (*keys, key, name)
                known = name in method.outputs if method.outputs else _UNNAMED.fullmatch(name)
                if not known:
                    outputs = method.outputs or ("out", "out_0")
                    message = f"{step.run}: {unknown('output', name, outputs)}"
                    yield Finding(here, message, at_key=True)
                if to == POSITIONS:
                    yield Finding(here, f"{POSITIONS!r} is what the flow itself provides")
                if to in self.appended and (key == "gives" or to in self.cut):
                    yield Finding(here, f"{to!r} would be both a cache and a value of the flow")
                if key == "gives" and name in step.append:
                    message = f"{name!r} is appended to a cache, so it is not given too"
                    yield Finding(here, message, at_key=True)

    def _reads(self, step: StepSpec, method: MethodSpec | None, keys: Keys) -> Findings:
        if method is not None and isinstance(method.inputs, dict):
            for name, given in method.inputs.items():
                yield from self._read(step, name, given, keys)
            return
        self.unseen = True
        for name, source in step.with_.items():
            if message := self._missing(source):
                yield Finding((*keys, "with", name), message)

    def _read(self, step: StepSpec, name: str, given: InputSpec, keys: Keys) -> Findings:
        source = step.with_.get(name, name)
        here = (*keys, "with", name) if name in step.with_ else (*keys, "run")
        message = self._missing(source)
        if message is None:
            message = self._mismatch(source, self.value(name, given))
        if message is not None:
            yield Finding(here, f"input {name!r} of {step.run}: {message}")

    def value(self, name: str, given: InputSpec) -> ValueSpec | None:
        """None if the shape or the dtype is wrong in itself, which is told where it stands."""
        sizes = (size for size in given.shape if isinstance(size, str))
        right = given.dtype in DTYPES and all(size in self.dims for size in sizes)
        return ValueSpec(name, given.dtype, given.shape) if right else None

    def _missing(self, source: str) -> str | None:
        if source in self.caches or self.gives(source) or source in self.cut or source == POSITIONS:
            return None
        if source in self.appended:
            return f"the cache {source!r} is read before anything is appended to it"
        hint = nearest(source, [*self.values, *self.caches, *self.cut, POSITIONS])
        return f"nothing gives {source!r} before this step{hint}"

    def _mismatch(self, source: str, reader: ValueSpec | None) -> str | None:
        """Why the reader cannot read the source, as far as the spec tells. Notes the reader."""
        if source in self.caches:
            known, message = self.cache_readers, self._wrong_cache(reader)
        elif source in self.values:
            known, message = self.values, None
        elif source in self.cut:
            known, message = self.cut_readers, self._wrong_cut(source, reader)
        else:
            return self._wrong_positions(reader) if source == POSITIONS else None
        first = known.get(source)
        known[source] = first or reader
        if message or first is None or reader is None:
            return message
        two = clash(first, reader, self.dims)
        return f"{source!r} cannot be read as both {two}" if two else None

    def _wrong_cache(self, reader: ValueSpec | None) -> str | None:
        if reader is None or any(settled(s, self.dims) in self.dims for s in reader.shape or ()):
            return None
        return f"a cache grows, so one axis must be a dynamic dim; got {show(reader, self.dims)}"

    def _wrong_cut(self, source: str, reader: ValueSpec | None) -> str | None:
        dim = self.cut[source]
        if reader is None or dim not in self.dims:
            return None
        shape, shown = reader.shape or (), show(reader, self.dims)
        if shape.count(dim) != 1:
            return f"it is cut by {dim!r}, which must stand on exactly one axis; got {shown}"
        whole = self._sample(source, shape.index(dim), dim)
        if whole is not None and (wrong := clash(whole, reader, self.dims)):
            return f"the sample has another {source!r}: {wrong}"
        first = self.cut_readers.get(source)
        before = (first.shape if first else None) or ()
        if first and before.count(dim) == 1 and before.index(dim) != shape.index(dim):
            return f"it is cut along one axis for all; got {show(first, self.dims)} and {shown}"
        return None

    def _sample(self, source: str, axis: int, dim: str) -> ValueSpec | None:
        """The model's input of that name as far as it is written, with the axis that is cut."""
        sample = self.draft.spec.sample
        given = sample.get(source) if isinstance(sample, dict) else None
        if given is None or self.draft.spec.flow[self.flow].reference != "forward":
            return None
        shape = tuple(dim if n == axis else size for n, size in enumerate(given.shape))
        return self.value(source, attrs.evolve(given, shape=shape))

    def _wrong_positions(self, reader: ValueSpec | None) -> str | None:
        dim = next(iter(self.cut.values()), None)
        if reader is None or dim is None or dim not in self.dims or not self.dims[dim].fixed:
            return None
        return agree(ValueSpec(POSITIONS, "int64", (dim,)), reader, self.dims)

    def _give(self, step: StepSpec, method: MethodSpec | None) -> None:
        if method is None:
            self.open = True
        elif not method.outputs:
            self.unnamed = True
        names = method.outputs if method is not None else ()
        for name in names or (*step.gives, "out"):
            if name not in step.append:
                self.values[step.gives.get(name, name)] = None
