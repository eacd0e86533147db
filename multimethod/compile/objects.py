"""Units -> objects: what the cache has is taken, the rest is exported and compiled.

The parent exports, since only it has the model; the workers lower. A unit travels to its worker
as a file that holds the exported program and refers to its weights (`unit_file.py`). Between the
two stages stands the decision which buffers are shared (`state.py`), since that takes the facts of
all units and changes how each is lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import torch
from attrs import frozen
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from mmpack.multimethod.compile.alike import Alike, Family
from mmpack.multimethod.compile.cache import Cache, Object
from mmpack.multimethod.compile.calls import NO_EXAMPLES, Examples
from mmpack.multimethod.compile.carried import Code, carried
from mmpack.multimethod.compile.contents import Contents
from mmpack.multimethod.compile.earlier import Earlier, earlier, last_costs, reasons, told
from mmpack.multimethod.compile.embeddings import require_tables
from mmpack.multimethod.compile.export import mark_as_state
from mmpack.multimethod.compile.exports import LIKE_ANOTHER, Exports, Facts
from mmpack.multimethod.compile.fingerprint import Print, digest
from mmpack.multimethod.compile.ingredients import Parts, decided_parts
from mmpack.multimethod.compile.means import Means
from mmpack.multimethod.compile.overview import Overview
from mmpack.multimethod.compile.pool import run_jobs
from mmpack.multimethod.compile.precision import is_calibrated, least_sqnr
from mmpack.multimethod.compile.process import Answer, Job
from mmpack.multimethod.compile.quantize import Plan, content_of, make_plan
from mmpack.multimethod.compile.state import State
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.compile.unit_file import UnitFile, tensors_of, write_unit
from mmpack.multimethod.compile.widen import kept_in_half
from mmpack.multimethod.errors import CompileError, OutputError, counted
from mmpack.multimethod.memory import give_back
from mmpack.multimethod.progress import Progress
from mmpack.multimethod.signature import Signature
from mmpack.multimethod.targets import BACKENDS


@frozen
class Objects:
    """An object for every unit, in their order.

    compiled: names of those not out of the cache; rebound: of these, those that are another unit's
    object with their own weights (`alike.py`). memory: bytes that one of the workers took at most;
    together: that this process and its workers took, without files that they map; 0 without any.
    """

    by_name: Mapping[str, Object]
    compiled: frozenset[str]
    memory: int = 0
    together: int = 0
    rebound: frozenset[str] = frozenset()


class Compiler:
    """Makes the objects of some units: `export_all`, then `compile_all`.

    names: id(tensor) -> its name in the model. prints: the units' fingerprints.
    fresh: names of units that are made anew, whatever the cache has.
    why: names of units of which it is to be told why they are compiled.
    alike: which units are of one structure; none given: all are exported and lowered.
    tidy: is given the path of every object that was lowered, to write it anew in its place.
    """

    def __init__(
        self,
        units: Mapping[str, Unit],
        names: Mapping[int, str],
        prints: Mapping[str, Print],
        store: Cache,
        progress: Progress,
        fresh: frozenset[str] = frozenset(),
        why: Collection[str] = (),
        alike: Alike | None = None,
        tidy: Callable[[Path], None] = lambda path: None,
    ) -> None:
        self._units = units
        self._store = store
        self._progress = progress
        self._fresh = fresh
        self._prints = prints
        self._why = why
        self._alike = alike
        self._tidy = tidy
        self._exports = Exports(units, names, prints, store, progress, fresh, alike)
        self._contents = Contents()

    def export_all(self) -> dict[str, Facts]:
        """The facts of every unit."""
        return self._exports.facts()

    def compile_all(
        self, state: State, means: Means, signatures: Mapping[str, Signature], examples: Examples
    ) -> Objects:
        """An object for every unit. `examples` are those that quantized units are calibrated
        with.

        Raises CompileError that names every method that failed, with its log; the objects of the
        others are in the cache by then.
        """
        self._progress.stage("compile", len(self._units))
        plans = {
            name: make_plan(
                signatures[name],
                state.marks[name],
                examples if is_calibrated(unit) else NO_EXAMPLES,
            )
            for name, unit in self._units.items()
            if least_sqnr(unit) is not None
        }
        decided = {
            name: [sorted(state.marks[name]), content_of(plans.get(name))] for name in self._units
        }
        keys = {name: digest([self._prints[name].digest, *decided[name]]) for name in self._units}
        parts = {
            name: {**self._prints[name].parts, **decided_parts(*decided[name])}
            for name in self._units
        }
        objects: dict[str, Object] = {}
        for name, key in keys.items():
            if name not in self._fresh and (found := self._store.object(key)) is not None:
                objects[name] = found
        missing = {name: unit for name, unit in self._units.items() if name not in objects}
        before = earlier(self._store) if missing else {}
        for name in self._why:
            self._progress.explain(name, self._reasons(name, keys, parts, missing, before))
        bound = means.memory if means.cluster is None else None
        overview = Overview(self._progress, means.jobs, bound, last_costs(before))
        overview.plan(missing, len(objects))

        def finished(answer: Answer) -> None:
            name = answer.job.method
            answer.job.unit.unlink(missing_ok=True)
            self._contents.release(name)
            if answer.error is None:
                self._tidy(answer.job.output)
                objects[name] = self._store.put_object(
                    keys[name],
                    answer.job.output,
                    answer.figures,
                    name,
                    answer.job.backend,
                    told(parts[name], overview.cost(name, answer)),
                )
            overview.finished(answer)

        def lower(names: Iterable[str]) -> list[Answer]:
            work = [
                self._job(signatures[name], keys[name], state.marks[name], plans.get(name))
                for name in names
            ]
            if any(kept_in_half(self._units[job.method].module) for job in work):
                give_back()  # what the files were written through, and the programs in them
            if not work:
                return []
            if means.cluster is not None:
                return means.cluster.run_jobs(work, overview.started, finished)
            return run_jobs(
                work,
                means.jobs,
                overview.started,
                finished,
                fits=overview.fits,
                tick=overview.tick,
                spare=means.spare,
            )

        for name in objects:
            overview.cached(name)
        families = self._families(objects, missing, state.marks)
        waiting = {name for family in families for name in family.others}
        answers = lower(name for name in missing if name not in waiting)
        rebound = set()
        for name, made in self._rebound(families, keys, objects):
            objects[name] = self._store.put_object(
                keys[name],
                made.path,
                made.figures,
                name,
                self._units[name].backend,
                told(parts[name], overview.cost(name)),
            )
            overview.made(name, LIKE_ANOTHER)
            rebound.add(name)
        answers += lower(name for name in missing if name in waiting - rebound)
        if means.spare is not None:  # nobody took it: nothing had to be lowered
            means.spare.dismiss()
        _require_all(answers)
        return Objects(
            {name: objects[name] for name in self._units},
            frozenset(missing),
            max((answer.memory for answer in answers), default=0),
            overview.peak if missing else 0,
            frozenset(rebound),
        )

    def _reasons(
        self,
        name: str,
        keys: Mapping[str, str],
        parts: Mapping[str, Parts],
        missing: Collection[str],
        before: Mapping[str, Sequence[Earlier]],
    ) -> list[str]:
        """Why a method is compiled; nothing if it is not."""
        if name not in missing:
            return []
        if name in self._fresh:
            return ["the cache is not asked: without verification, or where that found a mistake"]
        return reasons(self._store, keys[name], parts[name], before.get(name, ()))

    def _families(
        self, made: Collection[str], missing: Collection[str], marks: Mapping[str, frozenset[str]]
    ) -> list[Family]:
        if self._alike is None:
            return []
        names = self._alike.buffers_in
        return self._alike.families(
            made, missing, lambda one, other: names(one, other, marks[one]) == marks[other]
        )

    def _rebound(
        self, families: Sequence[Family], keys: Mapping[str, str], objects: Mapping[str, Object]
    ) -> Iterator[tuple[str, Object]]:
        """The objects of units that are of one structure with two others, as far as they can be
        known, on their way into the cache."""
        for family in families:
            first, second = objects.get(family.first), objects.get(family.second)
            if first is None or second is None or first.figures != second.figures:
                continue
            assert self._alike is not None
            paths = {family.first: first.path, family.second: second.path}
            proof = self._store.scratch(f"{first.key}.proof.pte")
            template = self._alike.template(family, paths, proof)
            if template is None:
                continue
            with closing(template):
                for name in family.others:
                    path = self._store.scratch(f"{keys[name]}.pte")
                    if self._alike.write(template, family.first, name, path):
                        yield name, Object(keys[name], path, first.figures)

    def _job(self, signature: Signature, key: str, marks: frozenset[str], plan: Plan | None) -> Job:
        """The unit written to a file, and what its worker must know besides."""
        name = signature.method
        unit = self._units[name]
        backend = BACKENDS[unit.backend]
        exported = self._exports.take(name)
        if plan is None:  # else it is done after quantization
            mark_as_state(exported.program, marks)
        else:
            require_tables(unit, exported.program, marks)
        about = UnitFile(
            method=name,
            backend=unit.backend,
            options=dict(unit.options),
            io=unit.spec.io,
            signature=signature,
            plan=plan,
            code=_registering(exported.program, unit.module),
            weights=self._contents.hold(
                name, tensors_of(exported.program), self._store.scratch(f"{key}.safetensors")
            ),
        )
        path = self._store.scratch(f"{key}.pt2")
        write_unit(path, about, exported.program)
        return Job(
            method=name,
            unit=path,
            backend=unit.backend,
            output=self._store.scratch(f"{key}.pte"),
            log=self._store.log(name, key),
            environment=backend.environment(backend.options(unit.options)),
        )


EXECUTORCH_OPERATORS = {"llama": "executorch.extension.llm.custom_ops.custom_ops"}
"""Namespace of those of ExecuTorch's operators that wrappers call -> the module that registers
them. Of others a unit's own code must do that where it is imported."""


def _registering(program: ExportedProgram, module: nn.Module) -> Code:
    """What a worker must import to know the program's operators; nothing for PyTorch's own."""
    names = {
        node.target.namespace
        for part in program.graph_module.modules()  # such as the branches of torch.cond
        if isinstance(part, GraphModule)
        for node in part.graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    }
    if names <= {"aten", "prim", "prims"}:
        return Code()
    homes = {base.__module__ for inside in module.modules() for base in type(inside).__mro__}
    homes = {h for h in homes if not h.startswith(("_mmpack_", "torch", "builtins"))}
    homes |= {module for name, module in EXECUTORCH_OPERATORS.items() if name in names}
    return carried(sorted(homes))


def _require_all(answers: list[Answer]) -> None:
    failed = [answer.error for answer in answers if answer.error is not None]
    if not failed:
        return
    kept = len(answers) - len(failed)
    if kept:
        failed.append(f"{counted(kept, 'other compiled method')} kept in the cache")
    kind = OutputError if any(answer.unwritten for answer in answers) else CompileError
    raise kind("\n".join(failed))
