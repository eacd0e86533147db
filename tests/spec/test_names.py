"""What is found in a file without importing it, and how a mistake is drawn."""

from pathlib import Path

import pytest

from mmpack.multimethod.spec.mistakes import Mistake
from mmpack.multimethod.spec.names import wrappers, wrong_factory, wrong_wrapper

FILE = """\
import json as encode, os.path
from math import sqrt
if True:
    def conditional(): ...
else:
    other = 1
try:
    import quick
except ImportError:
    quick = None
pair, [inner, *rest] = 1, [2, 3]
annotated: int = 3
async def later(): ...
class Wrapper:
    def method(self): ...
def outer():
    def local(): ...
raise SystemExit("imported")
"""


@pytest.fixture(autouse=True)
def _file(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(FILE)


@pytest.mark.parametrize(
    "name",
    [
        "encode",
        "os",
        "sqrt",
        "conditional",
        "other",
        "quick",
        "pair",
        "inner",
        "rest",
        "annotated",
        "later",
        "Wrapper",
        "Wrapper.method",
        "outer",
    ],
)
def test_defined(name: str, tmp_path: Path) -> None:
    assert wrong_factory(f"model.py:{name}", tmp_path) is None
    assert wrong_factory(f"{tmp_path}/model.py:{name}", Path("/")) is None


@pytest.mark.parametrize("name", ["json", "method", "local", "nothing"])
def test_not_defined(name: str, tmp_path: Path) -> None:
    message = wrong_factory(f"model.py:{name}", tmp_path)
    assert message is not None
    assert message.startswith(f"model.py defines no callable '{name}'")


@pytest.mark.parametrize(
    "reference", ["", ":", "a", ":a", "a:", "model.py:", "model.py:a b", "a-b:c", "a..b:c", ".a:b"]
)
def test_no_reference(reference: str, tmp_path: Path) -> None:
    message = wrong_factory(reference, tmp_path)
    assert message is not None
    assert message.startswith("expected file.py:callable or package.module:callable")


def test_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "bytes.py").write_bytes(b"\0\xff")
    message = wrong_factory("bytes.py:make", tmp_path)
    assert message is not None
    assert message.startswith("bytes.py ")


def test_wrappers_are_the_files_of_the_package(tmp_path: Path) -> None:
    assert "qkv_proj" in wrappers()
    assert "__init__" not in wrappers()
    assert all(wrong_wrapper(name, tmp_path) is None for name in wrappers())


def test_a_tab_keeps_the_marks_in_line() -> None:
    mistake = Mistake("s.yaml", 3, 6, "dim:\t32", 2, "dims", "no")
    assert str(mistake) == "s.yaml:3:6: dims: no\n    3 | dim:\t32\n      |     \t^^"
