"""QNN: Qualcomm's NPU (HTP), static shapes only. Builds and runs on x86 Linux too, in the simulator
that Qualcomm's libraries hold.

Source: ExecuTorch 1.5, `backends/qualcomm/utils/utils.py` (the order of passes in
`to_edge_transform_and_lower_to_qnn`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

from mmpack.multimethod.errors import TargetError, nearest
from mmpack.multimethod.signature import Dim
from mmpack.multimethod.spec.records import InputSpec, MethodSpec
from mmpack.multimethod.targets.base import Availability, Backend, in_blocks
from mmpack.multimethod.targets.qnn_sdk import NEEDED, PACKAGE, WORKS, Sdk, find_sdk

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager
    from torch.export import ExportedProgram

REMEDY = "pip install 'mmpack[qnn]'"
SQNR = {"16a8w": 25.0, "8a8w": 20.0, "16a4w_block": 13.0, "16a4w": 13.0}
"""Quantized precision -> least ratio in dB: about 10 below the worst that the README measures."""


@frozen
class Options:
    """soc: the chip, by executorch's name for it (SM8750). precision: `fp16`, or bits of
    activations and of weights: `16a8w`, `16a4w`, `8a8w`; at `16a4w_block`, `group` neighbouring
    weights share a scale."""

    soc: str
    precision: Literal["fp16", "16a8w", "16a4w", "16a4w_block", "8a8w"] = "fp16"
    group: int = field(default=32, validator=in_blocks)


class Qnn(Backend):
    name = "qnn"
    summary = "Qualcomm NPUs through QNN, and their simulator on x86 Linux: static shapes"
    Options = Options
    delegate = "QnnBackend"

    @classmethod
    def available(cls) -> Availability:
        sdk = find_sdk()
        if sdk is None:
            return Availability(
                False, False, f"no QNN_SDK_ROOT, and no {PACKAGE} {WORKS}", remedy=REMEDY
            )
        return Availability(True, True, sdk.version)

    @classmethod
    def refuses(
        cls,
        options: Any,
        method: MethodSpec,
        inputs: Mapping[str, InputSpec],
        dims: Mapping[str, Dim],
    ) -> str | None:
        socs = soc_names()
        if options.soc not in socs:
            return f"qnn knows no SoC {options.soc!r}{nearest(options.soc, socs)}"
        for dim in dims.values():
            if not dim.fixed:
                return (
                    f"{dim} is dynamic, and qnn takes static shapes only: give the dim one size, "
                    "or the method a target with dynamic shapes, such as xnnpack"
                )
        return None

    @classmethod
    def environment(cls, options: Any) -> dict[str, str]:
        sdk = _required()
        return {
            # Empty, executorch does not look for the rest of an SDK that the wheel has not.
            "QNN_SDK_ROOT": os.environ.get("QNN_SDK_ROOT", ""),
            "LD_LIBRARY_PATH": ":".join(map(str, sdk.folders)),
        }

    @classmethod
    def edge(cls, program: ExportedProgram, method: str, options: Any) -> EdgeProgramManager:
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
                partitioner={method: [QnnPartitioner(spec)]},
                compile_config=qnn_edge_config(),
            )

    @classmethod
    def prepare_runtime(cls) -> None:
        _load_libraries()

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


@cache
def soc_names() -> tuple[str, ...]:
    """The chips that this executorch can compile for."""
    from executorch.backends.qualcomm.serialization.qc_schema import QcomChipset

    return tuple(chip.name for chip in QcomChipset if chip.value)


@cache
def _load_libraries() -> None:
    """Have the QNN libraries in this process. torch and the executorch runtime must be in it
    already: loaded before them, the libraries crash it."""
    sdk = _required()
    for name in NEEDED:
        ctypes.CDLL(str(sdk.library(name)))


def _required() -> Sdk:
    sdk = find_sdk()
    if sdk is None:
        raise TargetError(f"qnn: no QNN_SDK_ROOT, and no {PACKAGE} {WORKS}: {REMEDY}")
    return sdk
