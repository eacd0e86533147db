"""A spec held against its model, before anything is compiled: what `check --model` tells, and what
every build begins with.

The model is made and its weights are loaded, each method is run once in eager PyTorch at its
smallest sizes, and with what that tells of outputs and buffers the rules about state and flows are
applied. A build applies them once more to what torch.export tells, which knows sizes exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs
import torch
from attrs import frozen
from torch import nn

from mmpack.multimethod.collect import Collected
from mmpack.multimethod.compile.alike import Alike
from mmpack.multimethod.compile.imports import importable
from mmpack.multimethod.compile.model import load_weights, make_model, state_names
from mmpack.multimethod.compile.rehearse import Rehearsed, names_in_model, rehearse, small_sizes
from mmpack.multimethod.compile.state import State, Touched, decide, require_own_memory
from mmpack.multimethod.compile.unit import Unit, gather_units
from mmpack.multimethod.driver.rotation import require_one_rotation
from mmpack.multimethod.errors import FlowError
from mmpack.multimethod.flow.plan import Kept, Plan, expanded_flows, make_plan
from mmpack.multimethod.signature import Signature
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.spec.mistakes import Keys
from mmpack.multimethod.verify.reference import (
    NOTHING,
    flow_inputs,
    require_comparable,
    run_reference,
)
from mmpack.multimethod.verify.room import require_room, require_verifiable


@frozen(eq=False)
class Examined:
    """A spec, its model with its weights, and its methods, ready to be exported."""

    spec_file: SpecFile
    model: nn.Module
    units: Mapping[str, Unit]


def examine(spec_file: SpecFile, *, verify: bool = True) -> Examined:
    """Make a spec's model and units, and look for all that can be wrong with them.

    verify: the program is to be compared with the model, which must be possible here.

    Raises one error that holds all mistakes, each with its line in the spec.
    """
    found = Collected()
    made = assemble(spec_file, found)
    rehearse_all(made, found, verify=verify)
    found.check()
    return made


def assemble(spec_file: SpecFile, found: Collected) -> Examined:
    """The model and those units that can be made. What is wrong with the others goes to `found`."""
    model = make_model(spec_file)
    with found.gather():
        load_weights(spec_file, model)
    return Examined(spec_file, model, gather_units(spec_file, model, found))


def rehearse_all(
    made: Examined,
    found: Collected,
    *,
    verify: bool,
    known: Mapping[str, Rehearsed] = MappingProxyType({}),
    alike: Alike | None = None,
) -> None:
    """Run every unit and the references of the flows; what is wrong with them goes to `found`.

    known: what was once found out of some units, which are not run again, nor is the reference of a
    flow that they are in. alike: of units of one structure, the first is run.
    """
    spec_file, model, units = made.spec_file, made.model, made.units
    with importable(spec_file.folder):
        rehearsed = _rehearse_units(spec_file, model, units, verify, found, known, alike)
    signatures = {name: r.signature for name, r in rehearsed.items()}
    touched = {name: r.touched for name, r in rehearsed.items() if r.touched is not None}
    for plan in settle(made, signatures, touched, found).plans.values():
        tried = any(step.method in known for step in plan.steps)
        if verify and plan.reference != NOTHING and not found and not tried:
            with found.gather():
                inputs = flow_inputs(spec_file, plan, units)
                expected = run_reference(spec_file, plan, model, inputs)
                require_comparable(spec_file, plan, signatures, expected)


@frozen(eq=False)
class Settled:
    """What takes all methods together: how they share state (None if that is wrong), and the flows
    that can be run, by name."""

    state: State | None
    plans: Mapping[str, Plan]


def settle(
    made: Examined,
    signatures: Mapping[str, Signature],
    touched: Mapping[str, Touched],
    found: Collected,
) -> Settled:
    """Apply the rules about state and flows, as far as `signatures` and `touched` are known; what
    is wrong goes to `found`."""
    spec_file, state = made.spec_file, None
    with found.gather():
        require_own_memory(spec_file, _tensors(made.model, made.units), touched)
        state = decide(spec_file, touched, whole=len(touched) == len(spec_file.methods))
    plans = {}
    for name in spec_file.spec.flow:
        if all(m in signatures for step in spec_file.steps[name] for m in step.methods):
            with found.gather():
                plans[name] = _plan_flow(made, name, signatures, state)
    with found.gather():
        require_one_rotation(spec_file, made.units, plans.values())
    return Settled(state, plans)


def _plan_flow(
    made: Examined, name: str, signatures: Mapping[str, Signature], state: State | None
) -> Plan:
    """A flow of the spec, settled. Raises FlowError, with the spec's line, for an edge whose ends
    disagree and for a step with state that does not know its position."""
    buffers: dict[str, tuple[str, ...]] = {}
    if state is not None:
        for shared, table in ((True, state.shared), (False, state.private)):
            for buffer, methods in table.items():
                buffers |= Kept.names(buffer, shared, methods)
    ranges = {unit.name: unit.ranges for unit in made.units.values()}
    flow = expanded_flows(made.spec_file)[name]
    try:
        return make_plan(name, flow, signatures, Kept(buffers, ranges))
    except FlowError as error:
        raise FlowError(str(made.spec_file.mistake(error.keys, str(error)))) from error


def _rehearse_units(
    spec_file: SpecFile,
    model: nn.Module,
    units: Mapping[str, Unit],
    verify: bool,
    found: Collected,
    known: Mapping[str, Rehearsed],
    alike: Alike | None,
) -> dict[str, Rehearsed]:
    """Run every unit. Of the methods that one `each` makes, the first one's mistake is told."""
    names = state_names(model)
    rehearsed: dict[str, Rehearsed] = {}
    wrong: set[Keys] = set()
    for name, unit in units.items():
        told = known.get(name) or _like_the_first(name, rehearsed, alike)
        if told is not None:
            rehearsed[name] = told
            continue
        template = spec_file.origins["methods", name].keys
        if template in wrong:
            continue
        wrong.add(template)
        with found.gather():
            require_room(unit, small_sizes(unit.dims))
            made = rehearse(unit, names)
            if verify:
                require_verifiable(unit, made.signature.outputs)
            rehearsed[name] = made
            wrong.discard(template)
    return rehearsed


def _like_the_first(
    name: str, rehearsed: Mapping[str, Rehearsed], alike: Alike | None
) -> Rehearsed | None:
    """What running a unit would tell, by the first of its structure; None if that cannot be."""
    first = alike.firsts.get(name) if alike is not None else None
    if alike is None or first is None or first not in rehearsed:
        return None
    told = rehearsed[first]
    touched = alike.touched_in(first, name, told.touched) if told.touched is not None else None
    if touched is None:
        return None
    return Rehearsed(attrs.evolve(told.signature, method=name), touched)


def _tensors(model: nn.Module, units: Mapping[str, Unit]) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of the methods' modules, by the name that it has in a program."""
    names = state_names(model)
    tensors: dict[str, torch.Tensor] = {}
    for unit in units.values():
        known = names_in_model(unit, names)
        for tensor in (*unit.module.parameters(), *unit.module.buffers()):
            tensors.setdefault(known[id(tensor)], tensor)
    return tensors
