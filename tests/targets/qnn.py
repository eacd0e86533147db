"""What tests of QNN share: whether it is here, and a model with a spec for it."""

from __future__ import annotations

import pytest

from mmpack.multimethod.targets import BACKENDS

_FOUND = BACKENDS["qnn"].available()

needs_qnn = pytest.mark.skipif(
    not _FOUND.builds, reason=f"qnn: {_FOUND.detail}; to change that: {_FOUND.remedy}"
)
"""Skips, with the reason, where the extra `qnn` is not installed."""

MODEL = """
    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

        def forward(self, x):
            return self.down(torch.relu(self.up(x)))

    class Split(nn.Module):
        '''Two linear layers, and between them an operator that QNN does not take.'''

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            return self.b(torch.erf(self.a(x)))

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(1, 8))

        def forward(self, x):
            self.total.add_(x)
            return self.total * 2

        def double(self):
            return self.total * 2

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp, self.split, self.counting = Mlp(), Split(), Counting()
            self.table = nn.Embedding(32, 64)

        def forward(self, x):
            return self.split(self.mlp(x))
"""
HEAD = """\
mmpack: 1
model: {factory: model.py:make}
dims: {n: {min: 1, max: 16}}
targets:
  npu: {backend: qnn, soc: SM8750, precision: fp16}
  older: {backend: qnn, soc: SM8550, precision: fp16}
  cpu: {backend: xnnpack}
  plain: {backend: portable}
"""
METHODS = """\
methods:
  mlp: {module: mlp, target: npu, inputs: {x: [1, 8, 64]}, outputs: y}
  split: {module: split, target: npu, inputs: {x: [1, 8, 64]}, outputs: y}
  older: {module: mlp, target: older, inputs: {x: [1, 4, 64]}, outputs: y}
  table: {module: table, target: npu, inputs: {input: {shape: [1, 8], dtype: int64, range: 0..31}}}
  count: {module: counting, target: npu, inputs: {x: [1, 8]}, outputs: y}
  counted: {module: counting, call: double, target: plain, inputs: {}, outputs: y}
  cpu: {module: mlp, target: cpu, inputs: {x: [1, n, 64]}, outputs: y}
state: {shared: [counting.total]}
"""
