"""A flow of the spec, settled against the signatures of its methods.

What a plan knows and the spec does not say: which axis an input is cut along, which axis a cache
grows along, and that every edge agrees in dtype and shape.

`spec/flow_walk.py` walks the same steps for another purpose: it finds all mistakes of a spec in
which methods, shapes and outputs may not be known. Here everything is known, the first thing that
does not fit ends it, and flows also come out of programs that no spec was read for. What the two
have in common, the rules of an edge, is in `spec/edges.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from attrs import evolve, field, frozen

from mmpack.multimethod.errors import FlowError, nearest
from mmpack.multimethod.flow.rows import settle_rows
from mmpack.multimethod.signature import Dim, Signature, ValueSpec
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.spec.edges import agree, growing_axis, settled
from mmpack.multimethod.spec.flow_walk import POSITIONS
from mmpack.multimethod.spec.records import FlowSpec, StepSpec


@frozen
class Cut:
    """An input of the flow that is cut in pieces of `size` along `axis`, the last one padded."""

    value: ValueSpec
    axis: int
    size: int


@frozen
class CacheSpec:
    """A cache that grows along `axis`; its readers are given its length rounded up to a size that
    `dim` admits, the rest zero."""

    value: ValueSpec
    axis: int
    dim: Dim


@frozen
class Step:
    """One call: `inputs` as (input name, name in the flow), `outputs` as (output name, name in the
    flow), `appends` as (output name, cache). `last`: the method that makes the last row alone; None
    without one, and where a piece is a row."""

    method: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    appends: tuple[tuple[str, str], ...]
    last: str | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The one that is called for a piece, and `last`."""
        return (self.method,) if self.last is None else (self.method, self.last)


@frozen
class Plan:
    """A flow, ready to run. `joins` maps each of the caller's outputs to the axis along which its
    pieces are joined again. `state` maps each buffer that the steps reach to all methods of the
    program that do; `limit` is how many positions these steps take, None without such. `rows` maps
    each name that steps with `last` read of what others, or the caller, give to the axis of its
    rows."""

    name: str
    cuts: Mapping[str, Cut]
    caches: Mapping[str, CacheSpec]
    steps: tuple[Step, ...]
    joins: Mapping[str, int]
    reference: str
    size: int
    state: Mapping[str, tuple[str, ...]] = field(factory=dict)
    limit: int | None = None
    rows: Mapping[str, int] = field(factory=dict)


def expanded_flows(spec_file: SpecFile) -> dict[str, FlowSpec]:
    """The spec's flows, their steps expanded."""
    return {
        name: evolve(flow, steps=spec_file.steps[name])
        for name, flow in spec_file.spec.flow.items()
    }


@frozen
class Kept:
    """What the methods of a program keep from call to call, as far as a flow must know it.

    buffers: each memory under a name of its own -> the methods that reach it. ranges: method ->
    input -> the least and largest integer that it takes.
    """

    buffers: Mapping[str, tuple[str, ...]] = field(factory=dict)
    ranges: Mapping[str, Mapping[str, Collection[int]]] = field(factory=dict)

    @staticmethod
    def names(buffer: str, shared: bool, methods: Collection[str]) -> dict[str, tuple[str, ...]]:
        """A buffer as an entry of `buffers`, or as one for each method that has a copy."""
        if shared or len(methods) == 1:
            return {buffer: tuple(methods)}
        return {f"{buffer} of {method}": (method,) for method in methods}


def make_plan(
    name: str, flow: FlowSpec, signatures: Mapping[str, Signature], kept: Kept | None = None
) -> Plan:
    """Settle a flow whose steps are already expanded. Raises FlowError, naming flow and step, for
    an edge whose two ends disagree, and for everything else that does not fit."""
    kept = kept or Kept()
    plan = _Planner(name, dict(flow.cut), signatures).plan(flow)
    methods = {step.method for step in plan.steps}
    state = {b: users for b, users in kept.buffers.items() if methods.intersection(users)}
    _require_none_kept(name, flow, kept.buffers)
    return evolve(plan, state=state, limit=_limit(plan, state, kept.ranges))


def _require_none_kept(name: str, flow: FlowSpec, buffers: Mapping[str, tuple[str, ...]]) -> None:
    """Raise FlowError for a step with `last` that keeps state: rows would be missing in it."""
    for number, step in enumerate(flow.steps):
        for method in step.methods if step.last is not None else ():
            buffer = next((b for b, users in buffers.items() if method in users), None)
            if buffer is not None:
                raise FlowError(
                    f"flow {name!r}: `last` is for steps that keep no state, and method {method!r} "
                    f"has some, the buffer {buffer!r}",
                    ("steps", name, number, "last"),
                )


def _limit(
    plan: Plan,
    state: Mapping[str, tuple[str, ...]],
    ranges: Mapping[str, Mapping[str, Collection[int]]],
) -> int | None:
    """How many positions the steps with state take. A flow starts at position 0 over whatever
    earlier ones left behind, which only a method that knows its position can tell from its own."""
    limits = []
    for number, step in enumerate(plan.steps):
        buffer = next((b for b, users in state.items() if step.method in users), None)
        if buffer is None:
            continue
        at = ("steps", plan.name, number, "run")
        told = f"flow {plan.name!r}: method {step.method!r} has state, the buffer {buffer!r}"
        taken = [name for name, source in step.inputs if source == POSITIONS]
        if not taken:
            raise FlowError(
                f"{told}, and does not take {POSITIONS!r}: so it cannot tell rows of this run from "
                "those of an earlier one. Have it take them and use nothing behind them, or give "
                "what it keeps as an output and `append` that to a cache",
                at,
            )
        for name in taken:
            low, high = ranges.get(step.method, {}).get(name, (0, -1))
            if low > 0 or high < 0:
                raise FlowError(
                    f"{told}; a `range` of its input {name!r} that begins at 0 must say which "
                    "positions there is room for, as in `range: 0..1023`",
                    at,
                )
            limits.append(high + 1)
    return min(limits, default=None)


class _Planner:
    """Walks the steps once, keeping what each name in the flow is at that point, and in `at` the
    keys that lead to what is looked at."""

    def __init__(self, name: str, cut: dict[str, str], signatures: Mapping[str, Signature]) -> None:
        self.name = name
        self.cut = cut
        self.signatures = signatures
        self.dims: dict[str, Dim] = {}
        self.cuts: dict[str, Cut] = {}
        self.caches: dict[str, CacheSpec] = {}
        self.appended: dict[str, tuple[str, ValueSpec]] = {}
        self.values: dict[str, tuple[str, ValueSpec]] = {}
        self.at: tuple[str | int, ...] = ("flow", name)

    def plan(self, flow: FlowSpec) -> Plan:
        for number, step in enumerate(flow.steps):
            self.at = ("steps", self.name, number, "run")
            # Of no other methods: a foreign one may use the names otherwise.
            self.dims.update(self._signature(step).dims)
            if step.last is not None and step.last in self.signatures:
                self.dims.update(self.signatures[step.last].dims)
        self.at = ("flow", self.name, "cut")
        self.size = self._piece_size()
        planned = tuple(self._step(number, step) for number, step in enumerate(flow.steps))
        self.at = ("flow", self.name, "cut")
        for unused in self.cut.keys() - self.cuts.keys():
            raise self.error(f"no step takes its input {unused!r}")
        self.at = ("flow", self.name, "steps")
        for cache in self.appended.keys() - self.caches.keys():
            raise self.error(f"cache {cache!r} is appended to and never read")
        joins = {}
        for number, output in enumerate(flow.outputs):
            self.at = ("flow", self.name, "outputs", number)
            if output not in self.values:
                raise self.error(f"no step gives {output!r}{nearest(output, self.values)}")
            joins[output] = self._piece_axis(*self.values[output])
        return Plan(
            self.name,
            self.cuts,
            self.caches,
            planned,
            joins,
            flow.reference,
            self.size,
            rows=self._rows(flow, joins),
        )

    def _rows(self, flow: FlowSpec, joins: Mapping[str, int]) -> dict[str, int]:
        axes = {name: cut.axis for name, cut in self.cuts.items()}
        steps, known = flow.steps, (self.signatures, axes, self.appended, self.size, self.dims)
        read, given = settle_rows(self.name, steps, *known)
        for number, (output, axis) in enumerate(joins.items()):
            found = {**read, **given}.get(output, axis)
            if found != axis:
                self.at = ("flow", self.name, "outputs", number)
                told = f"pieces of {output!r} are joined along axis {axis}"
                raise self.error(f"{told}, a step's `last` has its rows along axis {found}")
        return read

    def _piece_size(self) -> int:
        sizes: dict[int, Dim] = {}
        for name, dim_name in self.cut.items():
            dim = self.dims.get(dim_name)
            if dim is None:
                raise self.error(f"no method takes the dim {dim_name!r}, which cuts {name!r}")
            if not dim.fixed:
                raise self.error(f"pieces of {name!r} are all of one size, and {dim} is not fixed")
            sizes[dim.min] = dim
        if len(sizes) != 1:
            told = " and ".join(map(str, sizes.values())) or "nothing is cut"
            raise self.error(f"all inputs are cut in pieces of one size, got {told}")
        return next(iter(sizes))

    def _signature(self, step: StepSpec) -> Signature:
        assert step.run is not None
        if step.run not in self.signatures:
            raise self.error(f"there is no method {step.run!r}{nearest(step.run, self.signatures)}")
        return self.signatures[step.run]

    def _step(self, number: int, step: StepSpec) -> Step:
        assert step.run is not None
        here = ("steps", self.name, number)
        self.at = (*here, "run")
        signature = self._signature(step)
        outputs = {value.name: value for value in signature.outputs}
        for kind, names, known in (
            ("input", step.with_, [v.name for v in signature.inputs]),
            ("output", step.gives, outputs),
            ("output", step.append, outputs),
        ):
            for given in names:
                if given not in known:
                    raise self.error(f"{step.run} has no {kind} {given!r}{nearest(given, known)}")
        inputs = tuple((v.name, step.with_.get(v.name, v.name)) for v in signature.inputs)
        for value, (_, source) in zip(signature.inputs, inputs, strict=True):
            self.at = (*here, "with", value.name) if value.name in step.with_ else (*here, "run")
            self._edge(signature, value, source)
        for output, cache in step.append.items():
            self.at = (*here, "append", output)
            if cache in self.appended:
                first = self.appended[cache][0]
                raise self.error(f"both {first} and {step.run} append to cache {cache!r}")
            self.appended[cache] = (step.run, outputs[output])
        gives = tuple((n, step.gives.get(n, n)) for n in outputs if n not in step.append)
        for output, target in gives:
            self.values[target] = (step.run, outputs[output])
        last = step.last if self.size > 1 else None
        return Step(step.run, inputs, gives, tuple(step.append.items()), last)

    def _edge(self, reader: Signature, wanted: ValueSpec, source: str) -> None:
        where = f"{reader.method}.{wanted.name}"
        if source in self.appended:
            self._cache_edge(reader, wanted, source)
        elif source in self.values:
            giver, given = self.values[source]
            if wrong := agree(given, wanted, self.dims):
                raise self.error(f"{giver}.{given.name} -> {where}: {wrong}")
        elif source in self.cut:
            dim = self.cut[source]
            axes = [a for a, s in enumerate(wanted.shape or ()) if s == dim]
            if len(axes) != 1:
                raise self.error(f"{where} must have the dim {dim!r} on one axis to be cut by it")
            cut = Cut(self._fixed(wanted, axes[0], where), axes[0], self.size)
            before = self.cuts.setdefault(source, cut)
            if (before.axis, *_kind(before.value)) != (cut.axis, *_kind(cut.value)):
                raise self.error(
                    f"{where} takes {wanted.show(self.dims)}, another step took {source!r} as "
                    f"{before.value.show(self.dims)}"
                )
        elif source == POSITIONS:
            positions = ValueSpec(POSITIONS, "int64", (self.size,))
            if wrong := agree(positions, wanted, self.dims):
                raise self.error(f"{POSITIONS} -> {where}: {wrong}")
        else:
            known = [*self.values, *self.appended, *self.cut, POSITIONS]
            hint = nearest(source, known)
            raise self.error(f"nothing gives {source!r}, which {where} takes{hint}")

    def _cache_edge(self, reader: Signature, wanted: ValueSpec, cache: str) -> None:
        giver, given = self.appended[cache]
        where = f"{giver}.{given.name} -> {cache} -> {reader.method}.{wanted.name}"
        if wrong := agree(given, wanted, self.dims, cache=True):
            raise self.error(f"{where}: {wrong}")
        axis = growing_axis(given, wanted, self.dims)
        assert axis is not None and wanted.shape is not None and given.shape is not None
        if settled(given.shape[axis], self.dims) != self.size:
            raise self.error(
                f"{where}: axis {axis} grows by {given.shape[axis]} for each piece of {self.size}"
            )
        value = self._fixed(wanted, axis, where)
        spec = CacheSpec(value, axis, self.dims[str(wanted.shape[axis])])
        before = self.caches.setdefault(cache, spec)
        if (before.axis, before.dim) != (spec.axis, spec.dim):
            raise self.error(f"{where}: another step reads it with {before.dim}, not {spec.dim}")

    def _fixed(self, value: ValueSpec, axis: int, where: str) -> ValueSpec:
        """The value with numbers for its fixed dims. Only `axis` may still be dynamic."""
        shape = tuple(settled(size, self.dims) for size in value.shape or ())
        for other, size in enumerate(shape):
            if other != axis and isinstance(size, str):
                raise self.error(
                    f"{where}: {value.show(self.dims)} has a dynamic dim besides axis {axis}"
                )
        return evolve(value, shape=shape)

    def _piece_axis(self, giver: str, value: ValueSpec) -> int:
        """The axis of an output along which pieces are joined: the one that has the pieces' size;
        of several, the one that the cut inputs are cut along."""
        shape = value.shape or ()
        axes = [a for a, s in enumerate(shape) if settled(s, self.dims) == self.size]
        along = {cut.axis for cut in self.cuts.values()}
        likely = [a for a in axes if a in along] if len(axes) > 1 else axes
        if len(likely) != 1:
            raise self.error(
                f"output {value.show(self.dims)} of {giver} must have one axis of size {self.size} "
                "to be joined along"
            )
        return likely[0]

    def error(self, message: str) -> FlowError:
        return FlowError(f"flow {self.name!r}: {message}", self.at)


def _kind(value: ValueSpec) -> tuple[str, tuple[int | str, ...] | None]:
    return value.dtype, value.shape
