"""What the README shows is what the repository holds."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from mmpack.multimethod import check
from mmpack.multimethod.errors import MmpackError, SpecError
from mmpack.wrappers import find, names

ROOT = Path(__file__).parent.parent


def test_its_spec_is_the_example() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert shown == (ROOT / "examples/nested_matmul/nested_matmul.yaml").read_text()


def test_its_wrong_spec_is_told_so(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    (shown,) = re.findall(r"^    (spec\.yaml:\d+:.*\n(?:    .*\n)+)", text, re.MULTILINE)
    example = ROOT / "examples" / "nested_matmul"
    (tmp_path / "model.py").write_bytes((example / "model.py").read_bytes())
    spec = (
        (example / "nested_matmul.yaml")
        .read_text()
        .replace("plain\n    inputs", "plian\n    inputs")
    )
    (tmp_path / "spec.yaml").write_text(spec)
    with pytest.raises(SpecError) as caught:
        check(tmp_path / "spec.yaml")
    assert str(caught.value) == f"{tmp_path}/" + shown.replace("\n    ", "\n").rstrip("\n")


def test_its_exit_codes_are_those_of_the_errors() -> None:
    shown = re.findall(r"^\| (\d+) \| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    kinds = MmpackError.__subclasses__()
    assert sorted(shown) == sorted((str(kind.exit_code), kind.__name__) for kind in kinds)


def test_its_wrappers_are_those_there_are_with_their_args_and_inputs() -> None:
    (table,) = re.findall(
        r"^\| wrapper \|.*\n\|-.*\n((?:\|.*\n)+)", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]
    shown = {
        wrapper.strip("`"): (re.findall(r"`(\w+)`", args), re.findall(r"`(\w+)`", inputs))
        for wrapper, _, args, inputs in rows
    }
    assert len(rows) == len(shown)
    assert (
        shown
        == {
            name: (
                list(inspect.signature(find(name)).parameters)[1:],  # the first is the submodule
                list(inspect.signature(find(name).forward).parameters)[1:],
            )
            for name in names()
        }
    )
