"""What the README shows is what the repository holds."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from mmpack.multimethod.errors import MmpackError
from mmpack.wrappers import find, names

ROOT = Path(__file__).parent.parent


def test_its_spec_is_the_example() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert shown == (ROOT / "examples/nested_matmul/nested_matmul.yaml").read_text()


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
