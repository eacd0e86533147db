"""Cut a PyTorch model into methods, each with its own shapes and backend, in one `.pte`.

    from mmpack.multimethod import build, load

    build("spec.yaml", "model.pte")
    program = load("model.pte")
    q, k, v = program.run_method("qkv_proj", hidden)

The names below are all that is public. They are imported at first use, so that reading a spec
or a file does not pay for torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmpack.multimethod.check import check
    from mmpack.multimethod.driver.build import build
    from mmpack.multimethod.driver.records import BuildReport
    from mmpack.multimethod.errors import (
        CallError,
        ClusterError,
        CompileError,
        ExecutionError,
        FlowError,
        FormatError,
        LinkError,
        MmpackError,
        ModelError,
        OutputError,
        SpecError,
        TargetError,
        VerifyError,
    )
    from mmpack.multimethod.flow.context import Context
    from mmpack.multimethod.flow.execute import Flow
    from mmpack.multimethod.flow.program import Program, load
    from mmpack.multimethod.generate.generate import Generation, generate
    from mmpack.multimethod.generate.tokenizer import Tokenizer
    from mmpack.multimethod.link import LinkReport, link
    from mmpack.multimethod.report.inspection import Inspection, inspect
    from mmpack.multimethod.runtime.method import Method
    from mmpack.multimethod.signature import Dim, Signature, ValueSpec
    from mmpack.multimethod.verify.checked import Verified
    from mmpack.multimethod.verify.program import verify

_HOMES = {
    "check": ("check",),
    "driver.build": ("build",),
    "driver.records": ("BuildReport",),
    "errors": (
        "CallError",
        "ClusterError",
        "CompileError",
        "ExecutionError",
        "FlowError",
        "FormatError",
        "LinkError",
        "MmpackError",
        "ModelError",
        "OutputError",
        "SpecError",
        "TargetError",
        "VerifyError",
    ),
    "flow.context": ("Context",),
    "flow.execute": ("Flow",),
    "flow.program": ("Program", "load"),
    "generate.generate": ("Generation", "generate"),
    "generate.tokenizer": ("Tokenizer",),
    "link": ("LinkReport", "link"),
    "report.inspection": ("Inspection", "inspect"),
    "runtime.method": ("Method",),
    "signature": ("Dim", "Signature", "ValueSpec"),
    "verify.checked": ("Verified",),
    "verify.program": ("verify",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 (functions first)
    "build",
    "check",
    "generate",
    "inspect",
    "link",
    "load",
    "verify",
    "BuildReport",
    "CallError",
    "ClusterError",
    "CompileError",
    "Context",
    "Dim",
    "ExecutionError",
    "Flow",
    "FlowError",
    "FormatError",
    "Generation",
    "Inspection",
    "LinkError",
    "LinkReport",
    "Method",
    "MmpackError",
    "ModelError",
    "OutputError",
    "Program",
    "Signature",
    "SpecError",
    "TargetError",
    "Tokenizer",
    "ValueSpec",
    "Verified",
    "VerifyError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """`build`, `link` and others are functions here and modules below: the function is what
    `from mmpack.multimethod import link` means, whichever was imported first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
