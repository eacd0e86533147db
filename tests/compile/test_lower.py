"""Lowering: what it counts, and what it refuses. Oracles: the calls that stand in the written
`.pte`, read by ExecuTorch's own deserializer, and the graph that torch exported."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.schema import DelegateCall, KernelCall
from torch import nn
from torch.export import ExportedProgram, export

from mmpack.multimethod import load
from mmpack.multimethod.compile.lower import Lowered, lower
from mmpack.multimethod.errors import CompileError, TargetError


class Between(nn.Module):
    """XNNPACK takes what is around the cumulative sums, and those it does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.abs(torch.relu(x))
        return torch.cumsum(torch.cumsum(y, 0), 1) + 1.0 * x


class Sums(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(torch.cumsum(x, 0), 1).erf()


class Same(nn.Module):
    """Computes nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def exported(model: nn.Module) -> ExportedProgram:
    return export(model.eval(), (torch.ones(3, 4),))


def computed(program: ExportedProgram) -> Counter[str]:
    """How often each operator stands in what torch exported."""
    called = (n.target for n in program.graph.nodes if n.op == "call_function")
    return Counter(str(target).removesuffix(".default") for target in called)


def written(path: Path, method: str) -> tuple[Counter[str], int]:
    """The kernels that the only method of a `.pte` calls, by name, and its calls of delegates."""
    (plan,) = deserialize_pte_binary(path.read_bytes()).program.execution_plan
    assert plan.name == method
    calls = [i.instr_args for chain in plan.chains for i in chain.instructions]
    kernels = (plan.operators[c.op_index].name for c in calls if isinstance(c, KernelCall))
    return Counter(kernels), sum(isinstance(call, DelegateCall) for call in calls)


def test_each_operator_is_counted_where_it_runs(tmp_path: Path) -> None:
    program, path = exported(Between()), tmp_path / "x.pte"
    counts = lower(program, "between", "xnnpack", {}, path)
    kernels, delegate_calls = written(path, "between")
    assert kernels == {"aten::cumsum": 2} and delegate_calls == 2
    assert sum(computed(program).values()) == 6
    assert counts == Lowered(operators=6, delegated=4, left=kernels, extra={})


def test_portable_delegates_nothing_and_that_is_no_error(tmp_path: Path) -> None:
    program, path = exported(Between()), tmp_path / "x.pte"
    counts = lower(program, "between", "portable", {}, path)
    kernels, delegate_calls = written(path, "between")
    assert kernels.total() == 6 and not delegate_calls
    assert (counts.operators, counts.delegated) == (6, 0)
    names = {name.replace("::", "."): count for name, count in counts.left.items()}
    assert names == computed(program)


def test_a_method_of_which_the_backend_takes_nothing_is_refused(tmp_path: Path) -> None:
    program, path = exported(Sums()), tmp_path / "x.pte"
    assert computed(program) == {"aten.cumsum": 2, "aten.erf": 1}
    with pytest.raises(CompileError) as error:
        lower(program, "sums", "xnnpack", {}, path)
    assert str(error.value) == (
        "sums: xnnpack took none of its 3 operators (aten::cumsum, aten::erf); "
        "give it the target of a backend that can, such as portable"
    )
    assert not path.exists()
    assert lower(program, "sums", "portable", {}, path).left == {"aten::cumsum": 2, "aten::erf": 1}
    assert written(path, "sums") == ({"aten::cumsum": 2, "aten::erf": 1}, 0)


def test_a_method_that_computes_nothing_leaves_nothing_undelegated(tmp_path: Path) -> None:
    path = tmp_path / "x.pte"
    counts = lower(exported(Same()), "same", "xnnpack", {}, path)
    assert counts == Lowered(operators=0, delegated=0, left={}, extra={})
    assert written(path, "same") == ({}, 0)


def test_no_such_backend(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no backend is called 'xnpack'; did you mean 'xnnpack'"):
        lower(exported(Same()), "same", "xnpack", {}, tmp_path / "x.pte")


def test_no_copy_is_made_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    before = [weight.clone() for weight in model.parameters()]
    copies: list[nn.Parameter] = []
    real = nn.Parameter.__deepcopy__

    def counted(weight: nn.Parameter, memo: Any) -> nn.Parameter:
        copies.append(weight)
        return real(weight, memo)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Parameter, "__deepcopy__", counted)
        lower(exported(model), "f", "xnnpack", {}, tmp_path / "x.pte")
        assert copies == []
        # What is not lowered any more is copied as ever.
        twin = copy.deepcopy(model)
    assert twin[0].weight is not model[0].weight
    assert all(map(torch.equal, before, model.parameters()))
    program = load(tmp_path / "x.pte")
    x = torch.randn(3, 4)
    torch.testing.assert_close(program.run_method("f", x)[0], model(x))


def test_whose_memory_inputs_are_in_makes_another_object(project: Any, tmp_path: Path) -> None:
    project.model("""
        class Model(nn.Module):
            def forward(self, x):
                return x * 2
        """)
    method = "methods: {f: {module: ., target: plain, inputs: {x: [2]}, outputs: [y]%s}}\n"
    compiled = []
    for io in ("", ", io: planned", ", io: caller", ""):
        made = project.spec(method % io).build(cache=tmp_path / "cache")
        compiled.append(made.compiled)
    assert compiled == [1, 0, 1, 0]
