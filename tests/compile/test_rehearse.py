"""A rehearsal is held against torch.export: both tell outputs and buffers of one module."""

from __future__ import annotations

from typing import Any

import pytest

from mmpack.multimethod.compile.export import export
from mmpack.multimethod.compile.model import state_names
from mmpack.multimethod.compile.rehearse import rehearse, small_sizes
from mmpack.multimethod.compile.unit import make_units
from mmpack.multimethod.signature import Dim

from .projects import HEAD

MODEL = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.ones(3))
        self.register_buffer("rows", torch.zeros(4, 3))
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("table", torch.arange(12.0).view(4, 3))
        self.linear = nn.Linear(3, 3)
    def forward(self, x):
        {body}
"""


@pytest.mark.parametrize(
    "body",
    [
        "return x",
        "return self.linear(x)",
        "return self.total + x",
        "_ = self.total.sum(); return x * 2",
        "_ = self.rows[1:3]; return x * 2",
        "return self.rows[1:3].sum() + x",
        "self.total.add_(x[0]); return x * 2",
        "self.total.add_(x[0]); return self.total * 2",
        "self.total.copy_(self.table[1]); return x * 2",
        "self.rows[1:3] = self.total; return x * 2",
        "self.rows[:, 0].zero_(); return self.rows + self.count",
        "self.count += self.table.sum(); return x * self.total",
        "self.rows.index_put_((torch.tensor([1]),), self.total[None]); return x * 2",
        "return self.total * 1, self.rows.view(-1) * 1",
        "y = self.table * 2; y += self.count; z = self.rows + y; return x * 2 + y.sum()",
    ],
)
@pytest.mark.parametrize("shape", ["[2, 3]", "[n, 3]"])
def test_outputs_and_buffers_are_those_that_export_tells(
    project: Any, body: str, shape: str
) -> None:
    project.model(MODEL.format(body=body)).spec(
        f"methods: {{f: {{module: '.', target: plain, inputs: {{x: {shape}}}}}}}",
        HEAD + "dims: {n: {min: 2, max: 9}}\n",
    )
    model = project.load_model()
    names = state_names(model)
    unit = make_units(project.checked, model)["f"]
    exported, rehearsed = export(unit, names), rehearse(unit, names)
    assert rehearsed.touched.mutated == exported.mutated
    assert rehearsed.touched.read == exported.read
    assert rehearsed.signature == exported.signature


def test_a_module_that_cannot_be_watched_is_run_all_the_same(project: Any) -> None:
    body = "return torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (x,))"
    project.model(MODEL.format(body=body)).spec(
        "methods: {f: {module: '.', target: plain, inputs: {x: [n, 3]}}}",
        HEAD + "dims: {n: {min: 2, max: 9}}\n",
    )
    unit = project.units()["f"]
    assert str(rehearse(unit, {}).signature).endswith("-> (out: float32[n, 3])")


def test_what_is_no_dim_itself_stays_open(project: Any) -> None:
    project.model("class Model(nn.Module):\n    def forward(self, x): return torch.cat([x, x])")
    project.spec(
        "methods: {f: {module: '.', target: plain, inputs: {x: [n, 3]}}}",
        HEAD + "dims: {n: {min: 1, max: 9}}\n",
    )
    model = project.load_model()
    signature = rehearse(make_units(project.checked, model)["f"], {}).signature
    assert signature.outputs[0].shape == ("?", 3)


def test_small_sizes_are_admitted_and_tell_dims_apart() -> None:
    dims = {
        "one": Dim("one", 1, 1),
        "m": Dim("m", 1, 9),
        "n": Dim("n", 1, 9),
        "kv": Dim("kv", 32, 512, 32),
        "two": Dim("two", 2, 3),
    }
    least, larger = small_sizes(dims)
    assert least == {"one": 1, "m": 1, "n": 1, "kv": 32, "two": 2}
    assert (
        larger == {"one": 1, "m": 3, "n": 4, "kv": 64, "two": 3}
        or len({larger[n] for n in ("m", "n", "kv", "two")}) == 4
    )
    assert all(dim.admits(larger[name]) for name, dim in dims.items())
    assert small_sizes({"one": dims["one"]}) == [{"one": 1}]
    assert small_sizes({}) == [{}]
