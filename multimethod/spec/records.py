"""The spec as records: these attrs classes ARE the schema of `spec.yaml`.

A key that is no field here is a mistake; a field without a default must be given. Strings that
hold `{i}` are templates, filled by `each` (see `expand.py`). Nothing here imports torch.
"""

from __future__ import annotations

from typing import Any, Literal

from attrs import field, frozen

from mmpack.multimethod.signature import Dim


@frozen
class ModelSpec:
    """Where the model comes from: a `factory` of the user's, or `huggingface`.

    `factory` is `package.module:callable` or `file.py:callable` (relative to the spec), called
    with `args`; it returns an `nn.Module`. `weights` is a safetensors file (relative to the
    spec), loaded strictly: missing and unexpected keys are errors.

    `huggingface` is a folder (relative to the spec) with config.json and safetensors files, or a
    config.json alone: then the weights are random, drawn from `seed`.
    """

    factory: str | None = None
    args: dict[str, Any] = field(factory=dict)
    weights: str | None = None
    huggingface: str | None = None
    seed: int = 0

    @property
    def source(self) -> str:
        """What the spec names: the factory, or the folder."""
        return self.factory or self.huggingface or ""


@frozen
class InputSpec:
    """One input tensor: its shape (numbers and names of dims), its dtype, and for integers (8-bit
    ones apart) the inclusive range that test values are drawn from. `[1, chunk, 96]` is short for
    `{shape: [1, chunk, 96]}`."""

    shape: tuple[int | str, ...]
    dtype: str = "float32"
    range: tuple[int, int] | None = None


@frozen
class TargetSpec:
    """A backend by name and its options, which the backend's own record checks
    (`mmpack.multimethod.targets`). In YAML the options stand beside `backend`.

    lane: the processor that its methods occupy while they run; none given: the backend's own.
    """

    backend: str
    options: dict[str, Any] = field(factory=dict)
    lane: str | None = None


class Cycle(tuple[int | str, ...]):
    """Values that a symbol of `each` takes in turn, over and over, along with the symbol before it:
    in `{i: 0..5, kind: {cycle: [near, near, far]}}` kind is `far` where i is 2 or 5."""


Each = dict[str, tuple[int | str, ...]]


@frozen
class MethodSpec:
    """One method of the program, or one per value of `each`.

    module: fully qualified name of the submodule ("" or "." is the model itself).
    target: a name from `targets`.
    wrapper: a name from `mmpack.wrappers`, or `file.py:Class`; called as `Wrapper(module, **args)`.
    call: another Python method of the submodule than `forward` (excludes `wrapper`).
    inputs: name -> InputSpec, in call order; or "captured".
    axes: for captured inputs: input name -> {axis number: dim name}.
    outputs: names, in order; none given: `out`, or `out_0`, `out_1`, ….
    tolerance: largest error against eager PyTorch, relative to the output's root mean square or
        to an element that is larger; none given: the target's.
    precision: a word of the backend, in place of the target's.
    calibration: `file.py:callable` that yields inputs of this method, in place of the spec's.
    sqnr: least signal-to-quantization-noise ratio of any output, in dB, for a quantized precision;
        none given: the precision's.
    io: whose memory inputs and outputs are in while the method runs: "planned", the program's,
        which the runtime copies to and from; or "caller", which it uses where they are.
    """

    module: str
    target: str
    wrapper: str | None = None
    args: dict[str, Any] = field(factory=dict)
    call: str | None = None
    inputs: dict[str, InputSpec] | str = "captured"
    axes: dict[str, dict[int, str]] = field(factory=dict)
    outputs: tuple[str, ...] = ()
    tolerance: float | None = None
    precision: str | None = None
    calibration: str | None = None
    sqnr: float | None = None
    io: Literal["planned", "caller"] = "planned"
    each: Each = field(factory=dict)


@frozen
class StateSpec:
    """Mutable buffers by fully qualified name in the model (`*` and `?` match as in a shell):
    `shared` ones are one memory for all methods, `private` ones are one memory per method."""

    shared: tuple[str, ...] = ()
    private: tuple[str, ...] = ()


@frozen
class StepSpec:
    """One step of a flow: run a method, or repeat `steps` for every value of `each`. (A method with
    `each` beside it runs once for every value.) A text is short for `{run: text}`.

    run: the method. Its inputs are taken by name from what the flow has so far.
    with_ (`with:`): input name -> name in the flow, where the two differ.
    gives: output name -> name in the flow, where the two differ.
    append: output name -> cache. The output's rows are appended to that cache, which grows along
        the one axis where the output's shape and the shape of its readers differ. The flow has
        the output only as that cache then.
    last: the method that makes the last row of the outputs from the last row of the inputs. It is
        run in place of the step where a run's last row alone is wanted. Steps behind one with
        `last` have one too; they append nothing, keep no state, and read no cache and no positions.
    """

    run: str | None = None
    with_: dict[str, str] = field(factory=dict)
    gives: dict[str, str] = field(factory=dict)
    append: dict[str, str] = field(factory=dict)
    last: str | None = None
    each: Each = field(factory=dict)
    steps: tuple[StepSpec, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that it names."""
        return tuple(name for name in (self.run, self.last) if name is not None)


@frozen
class FlowSpec:
    """How methods feed each other.

    A step may keep state if it takes `positions` and uses nothing that lies behind them, as a
    cache whose row j is position j: a flow begins at position 0 over what earlier runs left there.
    The `range` of that input says how many positions there is room for.

    cut: input name -> fixed dim; the caller gives that input whole and the flow cuts it in
        pieces of the dim's size, the last one padded. `positions` (int64 [dim], the running
        index of each row) is always there for a step to take.
    outputs: names in the flow that the caller gets, cut inputs' axis joined again.
    reference: Python method of the model that the whole flow must equal ("none": no such thing).
    sqnr: like a method's, where a step is quantized; none given: that of its steps, whose noise
        adds up.
    each: one such flow for each of its values.
    """

    cut: dict[str, str]
    steps: tuple[StepSpec, ...]
    outputs: tuple[str, ...]
    reference: str = "forward"
    sqnr: float | None = None
    each: Each = field(factory=dict)


@frozen
class Spec:
    """A whole `spec.yaml`. `mmpack: 1` is its version. `sample` is the input of one run of the
    whole model: `file.py:callable` that returns it, or name -> InputSpec for random values.
    `calibration` is `file.py:callable` too: it yields inputs of the model (or of the methods that
    flows name as their reference), from which quantized methods get the ranges of their values.
    `files` travel inside the program: name there -> path (relative to the spec).
    `data` says where weights lie: "inside" the program, or in a `.ptd` file beside it, which is
    "separate" (called as the program is, and the program's own) or has this name (and may serve
    several programs)."""

    mmpack: int
    model: ModelSpec
    targets: dict[str, TargetSpec]
    methods: dict[str, MethodSpec]
    dims: dict[str, Dim] = field(factory=dict)
    sample: dict[str, InputSpec] | str | None = None
    calibration: str | None = None
    state: StateSpec = field(factory=StateSpec)
    flow: dict[str, FlowSpec] = field(factory=dict)
    constants: dict[str, int | float | bool | str] = field(factory=dict)
    files: dict[str, str] = field(factory=dict)
    data: str = "inside"
