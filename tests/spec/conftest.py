"""A folder with a small, valid spec in it, and the backends that its targets name."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from attrs import field, frozen, validators

from mmpack.multimethod.spec import SpecFile, load_spec
from mmpack.multimethod.targets import Refusal

HERE = Path(__file__).parent

MODEL = """\
from torch import nn

class Wrapper(nn.Module): ...
def make(layers=4): ...
def sample(): ...
def prompts(): ...
"""


@frozen
class NoOptions:
    pass


@frozen
class NpuOptions:
    soc: Literal["a1", "a2"]
    threads: int = field(default=1, validator=validators.gt(0))
    share: float | None = None
    fast: bool = False
    cores: tuple[int, ...] = ()
    precision: Literal["fp16", "16a8w", "8da8w"] = "fp16"


def _refuses(options: Any, method: Any, inputs: Any, dims: Any) -> Refusal | None:
    dynamic = [str(dim) for dim in dims.values() if not dim.fixed]
    return Refusal(f"npu wants fixed shapes, got {dynamic[0]}") if dynamic else None


BACKENDS = {
    "cpu": SimpleNamespace(Options=NoOptions, refuses=lambda *_: None),
    "npu": SimpleNamespace(
        Options=NpuOptions,
        refuses=_refuses,
        sqnr=lambda options: None if options.precision == "fp16" else 30.0,
        calibrated=lambda options: options.precision == "16a8w",
    ),
}


@pytest.fixture
def base() -> str:
    """The text of a spec that has a bit of everything."""
    return (HERE / "goldens" / "base.yaml").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds the files that the base spec names."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "broken.py").write_text("def make(:\n")
    (tmp_path / "star.py").write_text("from model import *\n")
    (tmp_path / "weights.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "package" / "inner.py").touch()
    return tmp_path


@pytest.fixture
def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], SpecFile]:
    """Loads a text as `spec.yaml`, from inside its folder, so that messages have short paths."""
    monkeypatch.chdir(folder)

    def load(text: str | bytes) -> SpecFile:
        raw = text.encode() if isinstance(text, str) else text
        Path("spec.yaml").write_bytes(raw)
        return load_spec("spec.yaml", backends=BACKENDS)

    return load
