"""Methods of one structure: what is made of two of them is what lowering each gives, to the byte.

The oracle is the same build with `share=False`, into a cache of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from mmpack.multimethod.compile import objects

from ..compile.projects import Project, run_here

LAYERS = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4))
        names = ["first", "second", "x", "a_long_name_for_a_layer"]
        self.layers = nn.ModuleDict({name: Layer(self.table) for name in names})
        change(self.layers)
"""
PLAIN = """
class Layer(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4, bias=False)
        self.norm = nn.LayerNorm(4)
        self.table = table
    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x)))) * self.table
"""
NOTHING = "def change(layers): pass\n"
SPEC = """
methods:
  "{{name}}.f":
    each: {{name: [first, second, x, a_long_name_for_a_layer]}}
    module: "layers.{{name}}"
    target: {target}
    inputs: {{x: {shape}}}
{more}
"""


class Both:
    """Builds a project twice, and counts what is lowered."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.project = project
        self.folder = folder

    def write(
        self,
        layer: str = PLAIN,
        change: str = NOTHING,
        target: str = "cpu",
        shape: str = "[2, 4]",
        more: str = "",
    ) -> None:
        self.project.model(change + layer + LAYERS)
        self.project.spec(SPEC.format(target=target, shape=shape, more=more))

    def build(self, share: bool = True, **options: Any) -> tuple[int, Path]:
        """How many methods were lowered, and the program."""
        output = self.folder / f"{share}.pte"
        lowered = []

        def run(jobs: Any, *rest: Any, **how: Any) -> Any:
            lowered.extend(jobs)
            return run_here(jobs, *rest, **how)

        options = {"cache": self.folder / f"cache {share}", **options}
        with patch.object(objects, "run_jobs", run):
            self.project.build(workers=True, share=share, output=output, **options)
        return len(lowered), output

    def require_equal(self, lowered: int, methods: int = 4) -> None:
        """Both ways give one program, made of one set of objects."""
        shared, program = self.build()
        apart, expected = self.build(share=False)
        assert (shared, apart) == (lowered, methods)
        assert program.read_bytes() == expected.read_bytes()
        one, two = self._objects(True), self._objects(False)
        assert one == two and len(one) == methods

    def _objects(self, share: bool) -> dict[str, bytes]:
        folder = self.folder / f"cache {share}" / "objects"
        return {path.name: path.read_bytes() for path in folder.glob("*.pte")}


@pytest.fixture
def both(project: Project, tmp_path: Path) -> Both:
    return Both(project, tmp_path)


@pytest.mark.parametrize("target", ["cpu", "plain"])
def test_two_are_lowered_for_all(both: Both, target: str) -> None:
    both.write(target=target)
    both.require_equal(2)


CONVOLUTIONS = """
class Layer(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.wide = nn.Conv2d(3, 6, 3)
        self.deep = nn.Conv2d(6, 6, (3, 2), groups=6)
        self.line = nn.Conv1d(6, 4, 3)
    def forward(self, x):
        return self.line(self.deep(self.wide(x)).flatten(2))
"""


@pytest.mark.parametrize("target", ["cpu", "plain"])
def test_weights_of_convolutions_are_stored_with_their_axes_turned(both: Both, target: str) -> None:
    both.write(CONVOLUTIONS, target=target, shape="[1, 3, 8, 8]")
    both.require_equal(2)


@pytest.mark.parametrize(
    ("change", "lowered"),
    [
        # Ones and zeros, as a fresh model has them, are the same in all layers.
        ("nn.init.zeros_(layer.up.bias)", 2),
        # Of the two, one is the layer that differs most.
        ("if name == 'x': nn.init.normal_(layer.norm.weight)", 2),
        ("if name != 'first': nn.init.normal_(layer.norm.weight)", 2),
        # They do not tell what follows a weight that is the same in both.
        ("nn.init.normal_(layer.norm.weight if name == 'x' else layer.norm.bias)", 2),
        ("if name[0] in 'xa': nn.init.normal_(layer.norm.get_parameter(NORM[name[0]]))", 3),
        # What is equal is stored once, so a layer where other weights are equal is another object.
        ("if name == 'x': layer.norm.bias.data.copy_(layer.norm.weight)", 3),
        ("if name != 'x': layer.norm.bias.data.copy_(layer.norm.weight)", 3),
        ("layer.norm.bias.data.copy_(layer.norm.weight.normal_())", 2),
        ("if name == 'x': layer.down.weight.data = layer.up.weight.data.view(4, 6)", 3),
        # Numbers that say nothing of the order in which they are stored.
        ("nn.init.constant_(layer.up.weight, len(name))", 4),
    ],
)
def test_weights_that_are_equal(both: Both, change: str, lowered: int) -> None:
    text = "NORM = {'x': 'weight', 'a': 'bias'}\ndef change(layers):\n    with torch.no_grad():"
    both.write(change=f"{text}\n        for name, layer in layers.items():\n            {change}\n")
    both.require_equal(lowered)


def test_a_weight_that_equals_a_constant_of_the_code(both: Both) -> None:
    layer = """
class Layer(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
    def forward(self, x):
        return x * self.weight + torch.tensor([1.0, 2.0, 3.0, 5.0])
"""
    change = """
def change(layers):
    layers["x"].weight.data.copy_(torch.tensor([1.0, 2.0, 3.0, 5.0]))
"""
    both.write(layer, change, "plain")
    both.require_equal(3)


def test_one_tensor_in_some_layers_and_two_in_others(both: Both) -> None:
    change = """
def change(layers):
    for name in ("first", "x"):
        layers[name].norm.weight = layers[name].norm.bias
"""
    both.write(change=change)
    both.require_equal(4)


STATE = """
class Layer(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.register_buffer("rows", torch.randn(4))
        self.register_buffer("none", torch.zeros(4), persistent=False)
    def forward(self, x):
        self.rows += self.up(x).sum(0)
        self.none.copy_(self.rows * 2)
        return x + self.rows + self.none
"""


@pytest.mark.parametrize("target", ["cpu", "plain"])
def test_state_is_called_by_its_own_name(both: Both, target: str) -> None:
    both.write(STATE, target=target)
    both.require_equal(2)


def test_a_buffer_that_begins_as_zeros_in_one_layer(both: Both) -> None:
    both.write(STATE, "def change(layers): layers['x'].rows.zero_()\n", "plain")
    both.require_equal(3)


def test_what_some_share_with_another_method_is_marked_there_alone(both: Both) -> None:
    reader = """
  set:
    module: "."
    call: put
    target: plain
    inputs: {x: [4]}
state: {shared: ["*.rows"]}
"""
    layer = """
class Layer(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.register_buffer("rows", torch.randn(4))
    def forward(self, x):
        return self.up(x) + self.rows
"""
    both.write(layer, target="plain", more=reader)
    put = """
    def put(self, x):
        self.layers["x"].rows.copy_(x)
        return x * 1
"""
    both.project.model(NOTHING + layer + LAYERS + put)
    both.require_equal(4, methods=5)


HIDDEN = """
torch.__dict__.setdefault("_hidden_from_fingerprints", [])
class Layer(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.up = nn.Linear(4, 4)
        baked = len(torch._hidden_from_fingerprints) % 4 in BAKED
        torch._hidden_from_fingerprints.append((self, float(self.up.bias[0]) if baked else 2.0))
    def forward(self, x):
        return self.up(x) * dict(torch._hidden_from_fingerprints)[self]
"""
"""A layer with a number in its graph that no fingerprint tells from the others'."""


@pytest.mark.parametrize("layers", ["(0, 1, 2, 3)", "(1,)"])
def test_a_value_in_the_graph_is_seen_and_all_are_lowered(both: Both, layers: str) -> None:
    both.write()
    both.project.model(NOTHING + f"BAKED = {layers}\n" + HIDDEN + LAYERS)
    both.require_equal(4)


def test_what_the_two_do_not_tell_is_seen_when_it_is_verified(both: Both) -> None:
    both.write()
    both.project.model(NOTHING + "BAKED = (2,)\n" + HIDDEN + LAYERS)
    lowered, _ = both.build(verify=False)
    assert lowered == 2  # nothing is compared
    lowered, program = both.build(cache=both.folder / "another")
    assert lowered == 3
    assert program.read_bytes() == both.build(share=False)[1].read_bytes()
