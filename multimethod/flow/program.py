"""A loaded program: its methods, and the flows between them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import cattrs

from mmpack.multimethod.errors import CallError, FlowError, FormatError, nearest
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.flow.plan import Kept, make_plan
from mmpack.multimethod.plain import PLAIN
from mmpack.multimethod.runtime import Methods
from mmpack.multimethod.runtime.engines import EngineName, Threads
from mmpack.multimethod.spec.records import FlowSpec


class Program(Methods):
    """`Methods`, and what the manifest says of how they feed each other."""

    @cached_property
    def flows(self) -> dict[str, Flow]:
        """The program's flows by name; {} for a program without a manifest. Raises FormatError
        for what is no flow, FlowError for one that does not fit its methods."""
        declared = self.manifest.flow if self.manifest is not None else {}
        signatures = {name: self.signature(name) for name in self}
        flows = {}
        for name, plain in declared.items():
            flow = _flow(plain, f"{self.path}: manifest: flow {name!r}")
            plan = make_plan(name, flow, signatures, self._kept())
            flows[name] = Flow(plan, self, self.lanes)
        return flows

    def _kept(self) -> Kept:
        buffers: dict[str, tuple[str, ...]] = {}
        for record in self.manifest.state if self.manifest is not None else ():
            buffers |= Kept.names(record.name, record.shared, record.methods)
        return Kept(buffers, {name: self[name].ranges for name in self})

    def flow(self, name: str) -> Flow:
        """A flow of the program, ready to run. Raises FlowError if there is no such flow."""
        if name not in self.flows:
            raise FlowError(f"{self.path}: no flow {name!r}{nearest(name, self.flows)}")
        return self.flows[name]

    def _unknown(self, name: str) -> CallError:
        if name in self.flows:
            return CallError(
                f"{self.path}: {name!r} is a flow, not a method; in Python, "
                f"`load({str(self.path)!r}).flow({name!r}).run(...)` runs it"
            )
        return super()._unknown(name)


def _flow(plain: object, where: str) -> FlowSpec:
    """A flow out of a manifest, where it stands with its steps expanded."""
    if not isinstance(plain, dict):
        raise FormatError(f"{where}: a {type(plain).__name__}, expected a mapping")
    try:
        flow = PLAIN.structure(plain, FlowSpec)
    except cattrs.BaseValidationError as error:
        raise FormatError(f"{where}: " + "; ".join(cattrs.transform_error(error))) from error
    for number, step in enumerate(flow.steps):
        if step.run is None or step.steps or step.each:
            raise FormatError(f"{where}: step {number} is not one call of one method")
    return flow


def load(
    path: str | Path,
    *,
    mmap: bool = False,
    engine: EngineName = "auto",
    threads: Threads = None,
    data: str | Path | None = None,
) -> Program:
    """Load a `.pte` program: one that mmpack made, or any other.

        program = load("model.pte")
        q, k, v = program.run_method("qkv_proj", hidden)

    A program made by mmpack brings its signatures; those of another are derived from its plan,
    without names. The file is read once into memory, and that copy is checked and run: the file
    is yours again when `load` returns, to replace, overwrite or delete. The copy stays as long as
    the program does, beside what a backend makes of its weights.

    mmap: map the file instead of reading it, which spares the copy (as much memory as the file is
    large, and some 0.4 s a GB). ExecuTorch then reads the file in every call: until the program is
    gone nobody may write into it or truncate it, which ends in a crash of the process or in wrong
    results. Replacing it by another file, as mmpack does, or deleting it is harmless.

    engine: what runs the methods. "stock" is ExecuTorch's own Python runtime: one method at a time.
    "native" runs different methods at the same time, each called by one thread at once, and costs
    less per call; it is compiled at its first use, which takes some 15 s and a C++ compiler
    (`mmpack doctor --build-engine` does it ahead). "auto" is the native one where it can be had, or
    else the stock one, with a line on stderr. Results and errors are the same.

    threads: 1 runs a method in the thread that calls it, and in no other; as many methods then run
    at once as threads call some. None gives every method all of ExecuTorch's pool, which one uses
    at a time. {"npu": 1} says so for the methods of a lane; those of others get the pool. For the
    native engine; the stock one always takes the pool.

    data: the `.ptd` file that has what the program keeps outside. mmpack's own programs name
    theirs, and it is found beside them. It is read as the program is, into memory or mapped.

    Raises FormatError if the file is no ExecuTorch program, is truncated or damaged, or its
    data are, are not there, or lack what it needs;
    ExecutionError if there is no room for the copy; CallError if there is no such engine,
    or it does not run in so many threads, or nothing is on such a lane;
    TargetError if it is "native" and cannot be built.
    """
    return Program.load(path, mmap=mmap, engine=engine, threads=threads, data=data)
