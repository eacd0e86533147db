"""What a folder holds, and every way in which it can be wrong, told without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from mmpack.multimethod.errors import SpecError
from mmpack.multimethod.huggingface import folder as rooms
from mmpack.multimethod.huggingface.folder import Held, read_folder
from mmpack.multimethod.spec import load_spec

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
TENSORS = {"a": numpy.zeros((2, 3), "float16"), "b": numpy.zeros(5, "float32")}
SPEC = """\
mmpack: 1
model:
  huggingface: model
targets: {cpu: {backend: portable}}
methods: {f: {module: ., target: cpu, inputs: {x: [1]}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as it should be, beside a spec that names it."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    save_file(TENSORS, path / "model.safetensors")
    (tmp_path / "spec.yaml").write_text(SPEC)
    return path


def index(folder: Path, named: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": named})
    )


def shards(folder: Path) -> None:
    """The same weights, in two files."""
    (folder / "model.safetensors").unlink()
    for number, name in enumerate(TENSORS):
        save_file({name: TENSORS[name]}, folder / f"{number}.safetensors")
    index(folder, {"a": "0.safetensors", "b": "1.safetensors"})


def said(folder: Path) -> str:
    with pytest.raises(SpecError) as raised:
        load_spec(folder.parent / "spec.yaml")
    return str(raised.value)


def test_a_folder_is_read(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    found = read_folder(folder)
    assert found.config == CONFIG and found.tokenizer == ("tokenizer.json",)
    assert found.tensors == {
        "a": Held("model.safetensors", "F16", (2, 3)),
        "b": Held("model.safetensors", "F32", (5,)),
    }
    assert found.files == ("model.safetensors",) and found.dtype == "float32"
    assert load_spec(folder.parent / "spec.yaml").spec.model.source == "model"


def test_shards_are_read(folder: Path) -> None:
    whole = read_folder(folder)
    shards(folder)
    found = read_folder(folder)
    assert found.files == ("0.safetensors", "1.safetensors")
    assert whole.tensors is not None and found.tensors is not None
    assert {n: h.shape for n, h in found.tensors.items()} == {
        n: h.shape for n, h in whole.tensors.items()
    }


def test_a_configuration_alone_has_no_weights(folder: Path) -> None:
    found = read_folder(folder / "config.json")
    assert found.tensors is None and found.path == folder and found.dtype == "float32"


def test_torch_and_transformers_are_left_alone(folder: Path) -> None:
    script = (
        "import sys\nfrom mmpack.multimethod.check import check\n"
        f"check({str(folder.parent / 'spec.yaml')!r})\n"
        "print({'torch', 'transformers'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def no_folder(folder: Path) -> None:
    folder.rename(folder.with_name("modle"))


def no_config(folder: Path) -> None:
    (folder / "config.json").rename(folder / "konfig.json")


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{model_type: llama}")


def a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        kept = {k: v for k, v in {**CONFIG, **changes}.items() if v is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "modell.safetensors")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def shard_missing(folder: Path) -> None:
    shards(folder)
    (folder / "1.safetensors").rename(folder / "11.safetensors")


def shard_without(folder: Path) -> None:
    shards(folder)
    index(folder, {"a": "0.safetensors", "bb": "1.safetensors"})


def index_of_nothing(folder: Path) -> None:
    shards(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


def index_without_metadata(folder: Path) -> None:
    shards(folder)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": json.loads(path.read_text())["weight_map"]}))


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return rewrite


def fp8(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    data = len(header).to_bytes(8, "little") + header + b"\0\0"
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (no_folder, "there is no folder .*model'; did you mean 'modle'"),
        (no_config, "has no config.json; did you mean 'konfig.json'"),
        (no_json, "config.json is no JSON: Expecting property name .* line 1"),
        (a_list, "config.json holds a list, expected a JSON object"),
        (configured(model_type=None), "has no text 'model_type'"),
        (configured(quantization_config={"quant_method": "awq"}), "checkpoint that awq has"),
        (adapter, "holds an adapter .*; merge it into its model first"),
        (no_weights, "has no model.safetensors and no .*; did you mean 'modell.safetensors'"),
        (pickled, "its weights in pytorch_model.bin, a pickle.* to make safetensors of them"),
        (shard_missing, "names 1.safetensors, which is not there; did you mean '11.safetensors'"),
        (shard_without, "1.safetensors has no tensor 'bb', which .* says is in it; did you mean"),
        (index_of_nothing, "has no 'weight_map'"),
        (index_without_metadata, "has no 'metadata', which transformers wants"),
        (rewritten(lambda data: data[:-1]), "not all of it: .*file not fully covered"),
        (rewritten(lambda data: data + b"\0"), "not all of it: .*file not fully covered"),
        (rewritten(lambda data: data[:5]), "no safetensors file, .*: header too small"),
        (rewritten(lambda data: data[:20]), "no safetensors file, .*: invalid header length"),
        (
            rewritten(lambda data: data[:8] + b"!" + data[9:]),
            "no safetensors file, .*: invalid JSON in header",
        ),
        (
            rewritten(lambda d: d.replace(b"[2,3]", b"[2,4]")),
            "no safetensors file, or not all of it: ",
        ),
        (fp8, "'a' is F8_E4M3; weights may be F16, BF16, F32"),
    ],
)
def test_what_is_wrong_with_a_folder(
    folder: Path, change: Callable[[Path], None], expected: str
) -> None:
    change(folder)
    message = said(folder)
    assert re.search(r"spec\.yaml:3:16: model\.huggingface: ", message), message
    assert re.search(expected, message, re.DOTALL), message


def test_without_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "find_spec", lambda name: None)
    assert "needs the package transformers, which is missing: pip install 'mmpack[hf]'" in said(
        folder
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("{}", ":2:1: model: expected `factory`, or `huggingface` with a folder"),
        ("{huggingface: model, factory: model.py:make}", "exclude each other"),
        ("{huggingface: model, weights: model/model.safetensors}", "`weights` goes with a `fac"),
        ("{huggingface: model, args: {a: 1}}", "`args` goes with a `factory`"),
        ("{huggingface: ''}", "expected the name of a folder, got the empty text"),
        ("{huggingface: model, seed: 3}", "to have random ones, name its config.json"),
        ("{factory: model.py:make, seed: 3}", "`seed` is for the random weights"),
        ("{huggingface: 3}", "model.huggingface: "),
    ],
)
def test_what_goes_together(folder: Path, model: str, expected: str) -> None:
    (folder.parent / "model.py").write_text("def make(): ...\n")
    text = SPEC.replace("model:\n  huggingface: model\n", f"model: {model}\n")
    (folder.parent / "spec.yaml").write_text(text)
    assert expected in said(folder)


def test_a_configuration_alone_may_have_a_seed(folder: Path) -> None:
    text = SPEC.replace("huggingface: model\n", "huggingface: model/config.json\n  seed: 3\n")
    (folder.parent / "spec.yaml").write_text(text)
    assert load_spec(folder.parent / "spec.yaml").spec.model.seed == 3
