"""Units -> objects: what the cache has is taken, the rest is exported and compiled.

The parent exports, since only it has the model; the workers lower. A unit travels to its worker
as a file that holds the exported program. Between the two stages stands the decision which
buffers are shared (`state.py`), since that takes the facts of all units and changes how each is
lowered.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from attrs import frozen
from torch import nn
from torch.export import ExportedProgram

from mmpack.multimethod.compile.cache import Cache, Object
from mmpack.multimethod.compile.calls import NO_EXAMPLES, Examples
from mmpack.multimethod.compile.earlier import Earlier, earlier, last_costs, reasons, told
from mmpack.multimethod.compile.embeddings import require_tables
from mmpack.multimethod.compile.export import Exported, export, mark_as_state
from mmpack.multimethod.compile.fingerprint import Print, digest
from mmpack.multimethod.compile.imports import places
from mmpack.multimethod.compile.ingredients import Parts, decided_parts
from mmpack.multimethod.compile.overview import Overview
from mmpack.multimethod.compile.pool import run_jobs
from mmpack.multimethod.compile.precision import is_calibrated, least_sqnr
from mmpack.multimethod.compile.process import Answer, Job
from mmpack.multimethod.compile.quantize import Plan, content_of, make_plan
from mmpack.multimethod.compile.state import State, Touched
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.compile.widen import kept_in_half
from mmpack.multimethod.errors import CompileError, OutputError, counted
from mmpack.multimethod.memory import give_back
from mmpack.multimethod.plain import PLAIN
from mmpack.multimethod.progress import Progress
from mmpack.multimethod.signature import Signature
from mmpack.multimethod.targets import BACKENDS


@frozen
class Facts:
    """What exporting a unit tells: its whole signature, and the buffers that it touches."""

    signature: Signature
    touched: Touched


@frozen
class Objects:
    """An object for every unit, in their order, the names of those not out of the cache, and the
    most memory in bytes that one of the workers took which compiled them, and that this process and
    its workers took together, without files that they map; 0 without any."""

    by_name: Mapping[str, Object]
    compiled: frozenset[str]
    memory: int = 0
    together: int = 0


class Compiler:
    """Makes the objects of some units: `export_all`, then `compile_all`.

    names: id(tensor) -> its name in the model. prints: the units' fingerprints.
    fresh: names of units that are made anew, whatever the cache has.
    memory: bytes that this process and its workers may take together while they compile.
    why: names of units of which it is to be told why they are compiled.
    """

    def __init__(
        self,
        units: Mapping[str, Unit],
        names: Mapping[int, str],
        prints: Mapping[str, Print],
        store: Cache,
        progress: Progress,
        fresh: frozenset[str] = frozenset(),
        memory: int | None = None,
        why: Collection[str] = (),
    ) -> None:
        self._units = units
        self._names = names
        self._store = store
        self._progress = progress
        self._fresh = fresh
        self._prints = prints
        self._memory = memory
        self._why = why
        self._exported: dict[str, Exported] = {}

    def export_all(self) -> dict[str, Facts]:
        """The facts of every unit, exporting those that the cache knows nothing of."""
        self._progress.stage("export", len(self._units))
        facts: dict[str, Facts] = {}
        for name, unit in self._units.items():
            self._progress.start(name)
            known = None if name in self._fresh else self._store.facts(self._prints[name].digest)
            if known is not None:
                facts[name] = PLAIN.structure(known, Facts)
            else:
                made = self._export(unit)
                self._exported[name] = made
                facts[name] = Facts(made.signature, Touched(made.mutated, made.read))
                self._store.put_facts(self._prints[name].digest, PLAIN.unstructure(facts[name]))
            self._progress.done(name, "cached" if known is not None else "")
        return facts

    def compile_all(
        self, state: State, jobs: int, signatures: Mapping[str, Signature], examples: Examples
    ) -> Objects:
        """An object for every unit, compiling `jobs` at a time. `examples` are those that
        quantized units are calibrated with.

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
        overview = Overview(self._progress, jobs, self._memory, last_costs(before))
        overview.plan(missing, len(objects))

        def finished(answer: Answer) -> None:
            name = answer.job.method
            answer.job.unit.unlink(missing_ok=True)
            if answer.job.plan is not None:
                answer.job.plan.unlink(missing_ok=True)
            if answer.error is None:
                objects[name] = self._store.put_object(
                    keys[name],
                    answer.job.output,
                    answer.figures,
                    name,
                    answer.job.backend,
                    told(parts[name], overview.cost(answer)),
                )
            overview.finished(answer)

        for name in objects:
            overview.cached(name)
        work = [self._job(name, keys[name], state.marks[name], plans.get(name)) for name in missing]
        if any(kept_in_half(unit.module) for unit in missing.values()):
            give_back()  # what the files were written through, and the programs in them
        answers = run_jobs(
            work, jobs, overview.started, finished, fits=overview.fits, tick=overview.tick
        )
        _require_all(answers)
        return Objects(
            {name: objects[name] for name in self._units},
            frozenset(missing),
            max((answer.memory for answer in answers), default=0),
            overview.peak if missing else 0,
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

    def _job(self, name: str, key: str, marks: frozenset[str], plan: Plan | None) -> Job:
        """The unit written to a file, and what its worker must know besides."""
        unit = self._units[name]
        backend = BACKENDS[unit.backend]
        exported = self._exported.pop(name, None) or self._export(unit)
        if plan is None:  # else it is done after quantization
            mark_as_state(exported.program, marks)
        else:
            require_tables(unit, exported.program, marks)
        path = self._store.scratch(f"{key}.pt2")
        try:
            torch.export.save(exported.program, path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error
        except Exception as error:
            # What torch's own writer of files says, or the stream that it writes to.
            if any(said in str(error) for said in ("inline_container", "iostream error")):
                message = f"{path} cannot be written in full: is there room on the disk?"
                raise OutputError(message) from error
            raise CompileError(
                f"{name}: torch.export cannot save it: {type(error).__name__}: {error}"
            ) from error
        return Job(
            method=name,
            unit=path,
            backend=unit.backend,
            options=dict(unit.options),
            output=self._store.scratch(f"{key}.pte"),
            log=self._store.log(name, key),
            imports=_registering(exported.program, unit.module),
            environment=backend.environment(backend.options(unit.options)),
            plan=self._write_plan(plan, key) if plan is not None else None,
            io=unit.spec.io,
        )

    def _export(self, unit: Unit) -> Exported:
        made = export(unit, self._names)
        if kept_in_half(unit.module):
            give_back()  # the copies in float32 that it was exported with
        return made

    def _write_plan(self, plan: Plan, key: str) -> Path:
        path = self._store.scratch(f"{key}.json")
        try:
            path.write_text(json.dumps(PLAIN.unstructure(plan)))
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error
        return path


def _registering(program: ExportedProgram, module: nn.Module) -> tuple[str | tuple[str, str], ...]:
    """What a worker must import to know the program's operators; nothing for PyTorch's own."""
    names = {
        node.target.namespace
        for node in program.graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    }
    if names <= {"aten", "prim", "prims"}:
        return ()
    homes = {base.__module__ for inside in module.modules() for base in type(inside).__mro__}
    own = sorted(h for h in homes if not h.startswith(("_mmpack_", "torch", "builtins")))
    return (*places(), *own)


def _require_all(answers: list[Answer]) -> None:
    failed = [answer.error for answer in answers if answer.error is not None]
    if not failed:
        return
    kept = len(answers) - len(failed)
    if kept:
        failed.append(f"{counted(kept, 'other compiled method')} kept in the cache")
    kind = OutputError if any(answer.unwritten for answer in answers) else CompileError
    raise kind("\n".join(failed))
