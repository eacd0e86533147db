"""Where the weights of units are: in a checkpoint's file, or written once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mmpack.multimethod.compile.contents import Contents, Reader
from mmpack.multimethod.errors import OutputError

W = torch.arange(12.0).reshape(3, 4)
ODD = torch.arange(7, dtype=torch.int8)
HALF = torch.arange(5, dtype=torch.bfloat16)


def by_hand(tensor: torch.Tensor) -> str:
    """The hash of a content, from its definition."""
    data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    text = f"{tensor.dtype}[{tensor.numel()}]{hashlib.sha256(data).hexdigest()}"
    return hashlib.sha256(text.encode()).hexdigest()


def test_what_is_written_is_a_safetensors_file_by_hash(tmp_path: Path) -> None:
    contents = Contents()
    held = contents.hold("f", {"odd": ODD, "w": W, "half": HALF}, tmp_path / "f.safetensors")
    written = load_file(tmp_path / "f.safetensors")
    assert written.keys() == {by_hand(t) for t in (W, ODD, HALF)}
    for name, tensor in {"odd": ODD, "w": W, "half": HALF}.items():
        place = held[name].content
        assert place.hash == by_hand(tensor) and place.offset % tensor.element_size() == 0
        assert torch.equal(written[place.hash].view(tensor.dtype).reshape(tensor.shape), tensor)
        assert torch.equal(Reader("f").tensor(name, held[name], own=False), tensor)


def test_equal_weights_are_written_once(tmp_path: Path) -> None:
    contents = Contents()
    shared = nn.Parameter(W)
    first = contents.hold("a", {"x": shared, "y": W.clone()}, tmp_path / "a.safetensors")
    second = contents.hold("b", {"z": shared, "odd": ODD}, tmp_path / "b.safetensors")
    third = contents.hold("c", {"z": shared}, tmp_path / "c.safetensors")
    assert first["x"] == first["y"] == second["z"] == third["z"]
    assert len(load_file(tmp_path / "a.safetensors")) == 1
    assert load_file(tmp_path / "b.safetensors").keys() == {by_hand(ODD)}
    assert not (tmp_path / "c.safetensors").exists()
    # The same bytes with another shape, or in another order, are one content too.
    turned = contents.hold("d", {"t": W.clone().t(), "row": W.reshape(12)}, tmp_path / "d")
    assert {h.content for h in turned.values()} == {first["x"].content}
    assert torch.equal(Reader("d").tensor("t", turned["t"], own=False), W.t())


def test_a_file_stays_until_no_unit_refers_to_it(tmp_path: Path) -> None:
    contents = Contents()
    contents.hold("a", {"x": W}, tmp_path / "a.safetensors")
    contents.hold("b", {"x": W, "odd": ODD}, tmp_path / "b.safetensors")

    def there() -> set[str]:
        return {path.stem for path in tmp_path.iterdir()}

    contents.release("a")
    assert there() == {"a", "b"}
    contents.release("b")
    assert there() == set()
    held = contents.hold("c", {"x": W}, tmp_path / "c.safetensors")
    assert there() == {"c"} and torch.equal(Reader("c").tensor("x", held["x"], own=True), W)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "a checkpoint.safetensors"
    save_file({"w": W, "odd": ODD, "half": HALF, "none": torch.empty(0)}, path)
    return path


def mapped(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_what_a_checkpoint_holds_is_referred_to_there(checkpoint: Path, tmp_path: Path) -> None:
    tensors = mapped(checkpoint)
    held = Contents().hold("f", tensors, tmp_path / "f.safetensors")
    for name in ("w", "odd", "half"):
        place = held[name].content
        assert place.path == str(checkpoint) and place.hash == by_hand(tensors[name])
        assert checkpoint.read_bytes()[place.offset :][: place.size] == (
            tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    assert load_file(tmp_path / "f.safetensors").keys() == {by_hand(tensors["none"])}
    for name, tensor in tensors.items():
        assert torch.equal(Reader("f").tensor(name, held[name], own=False), tensor)


def test_a_part_of_a_mapped_tensor_is_in_the_file_too(checkpoint: Path, tmp_path: Path) -> None:
    w = mapped(checkpoint)["w"]
    parts = {"row": w[1], "column": w[:, 1]}
    held = Contents().hold("f", parts, tmp_path / "f.safetensors")
    assert held["row"].content.path == str(checkpoint)
    assert held["column"].content.path == str(tmp_path / "f.safetensors")
    for name, tensor in parts.items():
        assert torch.equal(Reader("f").tensor(name, held[name], own=False), tensor)


def change(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors["w"][0, 0] = 7.0


def delete(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.unlink()


def replace(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.unlink()
    save_file({name: torch.ones_like(tensor) for name, tensor in tensors.items()}, path)


@pytest.mark.parametrize("happens", [change, delete, replace])
def test_what_the_file_does_not_hold_is_written(
    checkpoint: Path, tmp_path: Path, happens: Any
) -> None:
    tensors = mapped(checkpoint)
    happens(checkpoint, tensors)
    held = Contents().hold("f", {"w": tensors["w"]}, tmp_path / "f.safetensors")
    assert held["w"].content.path == str(tmp_path / "f.safetensors")
    assert torch.equal(Reader("f").tensor("w", held["w"], own=False), tensors["w"])


def test_weights_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    path = tmp_path / "none" / "f.safetensors"
    with pytest.raises(OutputError, match=r"none/f\.safetensors cannot be written: No such file"):
        Contents().hold("f", {"w": W}, path)
