"""YAML text -> records, every mistake with file:line:column.

from mmpack.multimethod.spec import load_spec

file = load_spec("spec.yaml")
file.methods["layers.0.qkv_proj"].target
"""

from mmpack.multimethod.spec.edges import agree
from mmpack.multimethod.spec.load import SpecFile, load_spec
from mmpack.multimethod.spec.mistakes import Mistake, Mistakes
from mmpack.multimethod.spec.records import (
    FlowSpec,
    InputSpec,
    MethodSpec,
    ModelSpec,
    Spec,
    StateSpec,
    StepSpec,
    TargetSpec,
)

__all__ = [
    "FlowSpec",
    "InputSpec",
    "MethodSpec",
    "Mistake",
    "Mistakes",
    "ModelSpec",
    "Spec",
    "SpecFile",
    "StateSpec",
    "StepSpec",
    "TargetSpec",
    "agree",
    "load_spec",
]
