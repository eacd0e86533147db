"""A method and what it was before a conversion are held against each other, whatever the backend.

Here two programs that ought to be equal are made from two models, so that no NPU is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from mmpack.multimethod.compile.cache import Object
from mmpack.multimethod.compile.calls import Examples, Tape
from mmpack.multimethod.compile.objects import Objects
from mmpack.multimethod.errors import VerifyError
from mmpack.multimethod.progress import Silent
from mmpack.multimethod.verify.heads import (
    APART,
    compare_heads,
    heads_note,
    heads_record,
    unconverted,
)

SCALED = """
class Model(nn.Module):
    def forward(self, x):
        return x * {scale}, x + 1
"""
CLIPPED = """
class Model(nn.Module):
    def forward(self, x):
        return x.clamp(-{most}, {most})
"""
SPEC = "methods: {f: {module: '.', target: plain, inputs: {x: [4, 8]}}}"
HEADS = {"extra": {"heads": {"found": 2, "converted": 2}}}


def objects(path: Path, figures: dict[str, Any] | None = None) -> Objects:
    return Objects({"f": Object("key", path, figures or {})}, frozenset())


def built(project: Any, scale: float) -> Path:
    return kept(project.model(SCALED.format(scale=scale)), f"{scale}.pte")


def kept(project: Any, name: str) -> Path:
    project.spec(SPEC).build()
    path: Path = project.output.rename(project.folder / name)
    return path


def test_what_is_near_is_reported_and_what_is_far_refused(project: Any) -> None:
    plain, near, far = (built(project, scale) for scale in (2.0, 2.01, 3.0))
    units = project.units()
    converted = objects(near, HEADS)
    compared = compare_heads(units, converted, objects(plain), Silent())
    assert 0.005 <= compared["f"].apart < APART
    assert compared["f"].unconverted_size == plain.stat().st_size
    record = heads_record(converted, compared, "f")
    assert record == {
        "heads": {
            "found": 2,
            "converted": 2,
            "apart": compared["f"].apart,
            "unconverted_size": plain.stat().st_size,
        }
    }
    note = heads_note(converted, compared, "f")
    assert note is not None
    assert note.startswith("f: 2 of 2 attention blocks in single heads, off by ")
    rewritten = {"extra": {"heads": {"method": "rewrite", "found": 2, "converted": 2}}}
    note = heads_note(objects(near, rewritten), compared, "f")
    assert note is not None
    assert note.startswith("f: 2 of 2 attention blocks in single heads (rewritten), off by ")
    with pytest.raises(
        VerifyError, match=r"f: its attention converted .* is off by .* from itself"
    ):
        compare_heads(units, objects(far), objects(plain), Silent())
    with pytest.raises(VerifyError, match=r"allowed 0\.05: mmpack converted it wrongly; build it"):
        compare_heads(units, objects(far, rewritten), objects(plain), Silent())


def test_what_calibration_recorded_is_what_is_compared_on(project: Any, tmp_path: Path) -> None:
    """Two that are the same for small numbers only, as a quantized method is for those it saw."""
    plain, other = (
        kept(project.model(CLIPPED.format(most=most)), f"{most}.pte") for most in (1e3, 0.1)
    )
    units = project.units()
    with Tape(tmp_path / "tape") as tape:
        calls = tuple(tape.write([torch.full((4, 8), 0.01 * n)]) for n in range(1, 5))
    examples = Examples(tmp_path / "tape", {}, {"f": calls}, {})
    compared = compare_heads(units, objects(other), objects(plain), Silent(), examples)
    assert compared["f"].apart == 0.0
    with pytest.raises(VerifyError):
        compare_heads(units, objects(other), objects(plain), Silent())


def test_only_what_was_converted_has_a_twin_which_differs_in_the_option_alone(project: Any) -> None:
    path = built(project, 2.0)
    unit = attrs.evolve(project.units()["f"], options={"soc": "SM8750", "mha2sha": True})
    assert unconverted({"f": unit}, objects(path)) == {}
    twin = unconverted({"f": unit}, objects(path, HEADS))["f"]
    assert twin.options == {"soc": "SM8750"}
    assert attrs.evolve(twin, options=unit.options).module is unit.module


def test_nothing_is_said_of_a_method_without_attention(project: Any) -> None:
    none = objects(built(project, 2.0), {"extra": {"heads": {"found": 0, "converted": 0}}})
    assert heads_note(none, {}, "f") is None
    assert heads_record(none, {}, "f") == {}
