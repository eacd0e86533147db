"""What the README shows is what the repository holds."""

from __future__ import annotations

import re
from pathlib import Path

from mmpack.multimethod.errors import MmpackError

ROOT = Path(__file__).parent.parent


def test_its_spec_is_the_example() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert shown == (ROOT / "examples/nested_matmul/nested_matmul.yaml").read_text()


def test_its_exit_codes_are_those_of_the_errors() -> None:
    shown = re.findall(r"^\| (\d+) \| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    kinds = MmpackError.__subclasses__()
    assert sorted(shown) == sorted((str(kind.exit_code), kind.__name__) for kind in kinds)
