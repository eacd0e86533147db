"""The one oracle: what a program computes, held against eager PyTorch.

Every method is run at the minimum, a middle and the maximum of each of its dims, and every flow on
two and a half pieces of input, against the modules that they were made from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from mmpack.multimethod.calibrate import record_examples
from mmpack.multimethod.compile.calls import NO_EXAMPLES, Examples
from mmpack.multimethod.compile.imports import importable
from mmpack.multimethod.compile.model import load_model
from mmpack.multimethod.compile.unit import Unit, make_units
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.progress import Progress, Silent
from mmpack.multimethod.spec import SpecFile, load_spec
from mmpack.multimethod.verify.agreement import require_same
from mmpack.multimethod.verify.checked import Verified, spec_place
from mmpack.multimethod.verify.flows import least_of_flow, verify_flow
from mmpack.multimethod.verify.methods import verify_methods
from mmpack.multimethod.verify.noise import example_flow_inputs
from mmpack.multimethod.verify.sparing import Sparing, room_for


def verify(
    path: str | Path,
    spec: str | Path,
    *,
    data: str | Path | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Hold an existing program against a spec and its model: signatures first, then numbers.

    data: the `.ptd` file of its weights, if that is not where its manifest says.
    Raises VerifyError for every kind of difference.
    """
    spec_file = load_spec(spec)
    model = load_model(spec_file)
    units = make_units(spec_file, model)
    # It is the user's file, which may be written over meanwhile; and a copy in memory would take as
    # much as two checkpoints in half precision.
    program = Program.load(path, on_disk=True, engine="stock", data=data)
    require_same(program, spec_file, units)
    records = program.manifest.state if program.manifest is not None else ()
    private = {record.name: record.methods for record in records if not record.shared}
    progress = progress if progress is not None else Silent()
    signatures = {name: program.signature(name) for name in units}
    plans = {name: flow.plan for name, flow in program.flows.items()}
    with tempfile.TemporaryDirectory() as folder:
        tape = Path(folder) / "tape"
        examples = record_examples(spec_file, model, units, signatures, plans, tape)
        verified = verify_program(program, spec_file, units, model, private, progress, examples)
    verified.require_right()
    return verified


def verify_program(
    program: Program,
    spec_file: SpecFile,
    units: Mapping[str, Unit],
    model: nn.Module,
    private: Mapping[str, tuple[str, ...]],
    progress: Progress,
    examples: Examples = NO_EXAMPLES,
) -> Verified:
    """Run all of a program, method by method and flow by flow, beside its model. Quantized ones
    are given `examples`. The program's state must be fresh, and is so afterwards; at no time is
    more of it loaded than a flow takes, or a method and those with state; of a flow that was made
    from weights in half precision, not all (see `sparing.py`)."""
    flows = spec_file.spec.flow
    progress.stage("verify", len(units) + len(flows))
    with importable(spec_file.folder):
        checked = verify_methods(program, units, model, private, progress, examples)
    results = []
    room = room_for(model)
    for name in flows:
        progress.start(f"flow {name}")
        program.reset()
        steps = spec_file.steps[name]
        tolerance = max(checked[method].tolerance for step in steps for method in step.methods)
        # A method for the last row runs in its step's place, and adds no noise to that.
        least = least_of_flow(flows[name].sqnr, [checked[step.run] for step in steps if step.run])
        flow = program.flow(name)
        if room is not None:
            flow = Flow(flow.plan, Sparing(program, units, room))
        given = example_flow_inputs(flow.plan, examples) if least is not None else []
        with spec_place(spec_file, ("flow", name)):
            results.append(verify_flow(flow, spec_file, units, model, tolerance, least, given))
        progress.done(f"flow {name}")
    program.reset()
    return Verified(checked, tuple(results))
