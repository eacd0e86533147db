"""QNN: Qualcomm's NPU (HTP), static shapes only. Builds and runs on x86 Linux too, in the simulator
that Qualcomm's libraries hold.

Source: ExecuTorch 1.5, `backends/qualcomm/utils/utils.py` (the order of passes in
`to_edge_transform_and_lower_to_qnn`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen
from cattrs.errors import AttributeValidationNote

from mmpack.multimethod.errors import TargetError, nearest
from mmpack.multimethod.signature import Dim
from mmpack.multimethod.spec.records import InputSpec, MethodSpec
from mmpack.multimethod.targets.base import Availability, Backend, Refusal, in_blocks
from mmpack.multimethod.targets.qnn_attention import wants_conversion
from mmpack.multimethod.targets.qnn_heads import watched
from mmpack.multimethod.targets.qnn_rewrite_check import rewritten
from mmpack.multimethod.targets.qnn_room import ROOM, full, takes
from mmpack.multimethod.targets.qnn_sdk import NEEDED, NoSdk, Sdk, find_sdk

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager
    from torch.export import ExportedProgram

SQNR = {"16a8w": 25.0, "8a8w": 20.0, "16a4w_block": 13.0, "16a4w": 13.0}
"""Quantized precision -> least ratio in dB: about 10 below the worst that the README measures."""
MAGIC = (0x5678ABCD).to_bytes(4, "little")
"""How the data of a delegate begin; the runtime's name for the context, 8 bytes, follows."""
NO_FP16 = ("QCM6490", "SAR2230P", "SSG2115P", "SSG2125P", "SW6100", "SXR1230P")
"""Chips that QNN 2.49 refuses to compile float16 for ("The SocModel doesn't support FP16")."""


def _soc(_: Any, attribute: Any, soc: str) -> None:
    socs = soc_names()
    if socs and soc not in socs:
        close = nearest(soc, socs, shown=len(socs))
        error = ValueError(f"executorch knows no SoC {soc!r}{close}")
        error.add_note(AttributeValidationNote("", attribute.name, str))  # where in the spec it is
        raise error


@frozen
class Mha2Sha:
    """method: ExecuTorch's `pass` (see `qnn_heads.py`), or mmpack's own `rewrite`, which takes
    longer to compile and knows every form (see `qnn_rewrite.py`)."""

    method: Literal["pass", "rewrite"]


@frozen
class Options:
    """soc: the chip, by executorch's name for it (SM8750). precision: `fp16`, or bits of
    activations and of weights: `16a8w`, `16a4w`, `8a8w`; at `16a4w_block`, `group` neighbouring
    weights share a scale. mha2sha: convert attention of several heads to single heads; true is
    short for the method `pass`."""

    soc: str = field(validator=_soc)
    precision: Literal["fp16", "16a8w", "16a4w", "16a4w_block", "8a8w"] = "fp16"
    group: int = field(default=32, validator=in_blocks)
    mha2sha: bool | Mha2Sha = False

    @property
    def heads(self) -> str | None:
        """The method by which attention is converted to single heads; None if it is not."""
        if isinstance(self.mha2sha, Mha2Sha):
            return self.mha2sha.method
        return "pass" if self.mha2sha else None


class Qnn(Backend):
    name = "qnn"
    Options = Options
    lane = "npu"
    delegate = "QnnBackend"
    external = True
    room = ROOM
    proof = MappingProxyType({"soc": "SM8750"})

    @classmethod
    def available(cls) -> Availability:
        try:
            sdk = find_sdk(to_build=True)
            return Availability(True, True, str(sdk), remedy=sdk.remedy)
        except NoSdk as error:
            return Availability(False, False, error.detail, remedy=error.remedy)

    @classmethod
    def refuses(
        cls,
        options: Any,
        method: MethodSpec,
        inputs: Mapping[str, InputSpec],
        dims: Mapping[str, Dim],
    ) -> Refusal | None:
        if options.precision == "fp16" and options.soc in NO_FP16:
            return Refusal(f"{options.soc} has no float16, and the target's precision is fp16")
        if options.precision == "16a4w_block" and options.heads == "pass":
            # It wants linear layers made convolutions while lowering, which ExecuTorch's pass takes
            # apart wrongly; see `edge`.
            return Refusal(
                "mha2sha by ExecuTorch's pass does not go with 16a4w_block; {method: rewrite} does"
            )
        for at, name in _named_sizes(method, inputs):
            if not dims[name].fixed:
                return Refusal(
                    f"{dims[name]} is dynamic, and qnn takes static shapes only: give the dim one "
                    "size, or the method a target with dynamic shapes, such as xnnpack",
                    at,
                )
        return None

    @classmethod
    def environment(cls, options: Any) -> dict[str, str]:
        sdk = _required(to_build=True)
        given = os.environ.get("LD_LIBRARY_PATH")
        folders = [*map(str, sdk.folders), *([given] if given else [])]
        return {"QNN_SDK_ROOT": sdk.root, "LD_LIBRARY_PATH": ":".join(folders)}

    @classmethod
    def edge(cls, program: ExportedProgram, method: str, options: Any) -> EdgeProgramManager:
        if "QNN_SDK_ROOT" not in os.environ:  # executorch would download an SDK
            raise TargetError(f"{method}: qnn lowers in a process started with its `environment`")
        from executorch.backends.qualcomm._passes.qnn_pass_manager import get_qnn_pass_manager_cls
        from executorch.backends.qualcomm.partition.qnn_partitioner import QnnPartitioner
        from executorch.backends.qualcomm.serialization.qc_schema import (
            QcomChipset,
            QnnExecuTorchBackendType,
        )
        from executorch.backends.qualcomm.utils.qnn_manager_lifecycle import QnnManagerContext
        from executorch.backends.qualcomm.utils.utils import (
            generate_htp_compiler_spec,
            generate_qnn_executorch_compiler_spec,
            qnn_edge_config,
        )
        from executorch.exir import to_edge_transform_and_lower

        spec = generate_qnn_executorch_compiler_spec(
            soc_model=QcomChipset[options.soc],
            backend_options=generate_htp_compiler_spec(use_fp16=options.precision == "fp16"),
            use_mha2sha=options.heads == "pass" and wants_conversion(program),
        )
        passes = get_qnn_pass_manager_cls(QnnExecuTorchBackendType.kHtpBackend)()
        prepared = passes.transform_for_export_pipeline(program)
        with QnnManagerContext({method: spec}):
            return to_edge_transform_and_lower(
                {method: prepared},
                transform_passes={
                    method: passes.get_to_edge_transform_passes(
                        program,
                        compiler_specs=spec,
                        # A fully connected layer with a scale for each block of weights comes out
                        # wrong (13 dB in the place of 35), a convolution right.
                        convert_linear_to_conv2d=options.precision == "16a4w_block",
                    )
                },
                partitioner={method: [QnnPartitioner(spec, skip_mutable_buffer=True)]},
                compile_config=qnn_edge_config(),
            )

    @classmethod
    def prepare(cls, program: ExportedProgram, method: str, options: Any) -> dict[str, Any]:
        return rewritten(program, method) if options.heads == "rewrite" else {}

    @classmethod
    @contextmanager
    def watched(
        cls, program: ExportedProgram, method: str, options: Any
    ) -> Iterator[dict[str, Any]]:
        if options.heads != "pass":
            yield {}
            return
        with watched(program, method) as told:
            yield told

    @classmethod
    def prepare_runtime(cls) -> None:
        _load_libraries()

    @classmethod
    def identity(cls, head: bytes) -> slice | None:
        return slice(4, 12) if head[:4] == MAGIC else None

    @classmethod
    def takes(cls, data: int) -> int:
        return takes(data)

    @classmethod
    def full(cls, printed: str) -> str | None:
        return full(printed)

    @classmethod
    def tolerance(cls, options: Any) -> float:
        return 2e-2

    @classmethod
    def sqnr(cls, options: Any) -> float | None:
        return SQNR.get(options.precision)

    @classmethod
    def calibrated(cls, options: Any) -> bool:
        return bool(options.precision != "fp16")

    @classmethod
    def quantizer(cls, options: Any) -> Any:
        if options.precision == "fp16":
            return None
        from mmpack.multimethod.targets.qnn_quantizer import make_quantizer

        return make_quantizer(options.soc, options.precision, options.group)


def _named_sizes(
    method: MethodSpec, inputs: Mapping[str, InputSpec]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where in a method a dim is named, and which one."""
    for name, given in inputs.items():
        for axis, size in enumerate(given.shape):
            if isinstance(size, str):
                yield ("inputs", name, "shape", axis), size
    for name, axes in method.axes.items():
        for axis, size in axes.items():
            yield ("axes", name, axis), size


@cache
def soc_names() -> tuple[str, ...]:
    """The chips that this executorch can compile for; none if there is no executorch, whose
    absence is for others to tell."""
    try:  # imports no torch
        from executorch.backends.qualcomm.serialization.qc_schema import QcomChipset
    except ImportError:
        return ()
    return tuple(chip.name for chip in QcomChipset if chip.value)


@cache
def _load_libraries() -> None:
    """Have the QNN libraries in this process, so that the runtime, which asks for them by their
    bare names, finds them.

    torch must be in it already: if their libunwind is loaded before torch is, the first exception
    that torch throws crashes the process.
    """
    import torch

    assert torch
    sdk = _required(to_build=False)
    for name in NEEDED:
        ctypes.CDLL(str(sdk.library(name)))


def _required(*, to_build: bool) -> Sdk:
    try:
        return find_sdk(to_build=to_build)
    except NoSdk as error:
        raise TargetError(str(error)) from error
