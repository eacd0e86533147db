"""What the README shows is what the repository holds."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_its_spec_is_the_example() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert shown == (ROOT / "examples/nested_matmul/nested_matmul.yaml").read_text()
