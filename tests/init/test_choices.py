"""What a user chooses, and what of it excludes each other."""

from __future__ import annotations

import pytest

from mmpack.multimethod.errors import SpecError
from mmpack.multimethod.init import Choices, Target, target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("xnnpack", Target("xnnpack")),
        ("xnnpack:8da4w", Target("xnnpack", {"precision": "8da4w"}, quantized=True)),
        (
            "xnnpack:8da4w:64",
            Target("xnnpack", {"precision": "8da4w", "group": 64}, quantized=True),
        ),
        ("qnn:SM8750", Target("qnn", {"soc": "SM8750"})),
        (
            "qnn:SM8750:16a4w",
            Target("qnn", {"soc": "SM8750", "precision": "16a4w"}, quantized=True, calibrated=True),
        ),
        (
            "qnn:SM8750:group=64:precision=16a4w_block",
            Target(
                "qnn",
                {"soc": "SM8750", "group": 64, "precision": "16a4w_block"},
                quantized=True,
                calibrated=True,
            ),
        ),
    ],
)
def test_targets(text: str, expected: Target) -> None:
    assert target(text, "--cpu") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("xnpack", "--npu xnpack: no backend is called 'xnpack'; did you mean 'xnnpack'?"),
        ("qnn:SM9999", "--npu qnn:SM9999: executorch knows no SoC 'SM9999'; known: "),
        ("qnn:SM8750:16a5w", "--npu qnn:SM8750:16a5w: expected one of "),
        ("qnn", "--npu qnn: the key 'soc' is missing"),
        ("xnnpack:fp32:32:4", "--npu xnnpack:fp32:32:4: xnnpack has no option number 3"),
        (
            "xnnpack:presicion=fp32",
            "xnnpack has no option 'presicion'; did you mean 'precision'?",
        ),
    ],
)
def test_targets_that_are_none(text: str, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        target(text, "--npu")
    assert message in str(raised.value)


@pytest.mark.parametrize("split", ["block", "whole"])
def test_coarse_cuts_keep_their_caches(split: str) -> None:
    assert Choices(8, 64, split).fixed  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=f"--split {split} keeps its caches in the program"):
        Choices(8, 64, split, "dynamic")  # type: ignore[arg-type]


@pytest.mark.parametrize(("chunk", "context"), [(0, 64), (65, 64), (-1, 8)])
def test_a_chunk_fits_into_the_context(chunk: int, context: int) -> None:
    with pytest.raises(SpecError, match="a context of at least one chunk"):
        Choices(chunk, context)
