"""SmolLM2-135M's configuration in mmpack, llama.cpp and eager PyTorch, on this machine in one run.

    pip install '.[test]' llama-cpp-python==0.3.36 gguf    # the former compiles for some minutes
    python tests/bench/peers/compare.py --folder peers

Weights are random, and the same for all. Each peer is a process that has loaded its model; they
take turns, round after round: read a prompt of 512 tokens, then write 32 tokens, with two threads.
Printed are medians; and for those that compute in float32, how far their logits are from PyTorch's.
What was made stays in the folder and is used again. At first it takes some 10 minutes, and 4 GB.

Source of the configuration: huggingface.co/HuggingFaceTB/SmolLM2-135M, config.json.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
from gguf_file import KINDS, write_gguf
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PROMPT, WRITTEN, CHUNK, CONTEXT = 512, 32, 64, 1024
PRECISIONS = ("fp32", "8da4w")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--folder", type=Path, required=True, help="where to make the models")
    options.add_argument("--rounds", type=int, default=9)
    given = options.parse_args()
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    commands = _made(folder)
    prompt = numpy.random.default_rng(0).integers(49152, size=PROMPT).tolist()
    peers = {name: _Peer(command) for name, command in commands.items()}
    logits: dict[str, numpy.ndarray] = {}
    for name, peer in peers.items():  # warm, and compared
        path = folder / "logits.npy"
        peer.run({"prompt": prompt, "write": 4, "logits": str(path)})
        logits[name] = numpy.load(path)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for _ in range(given.rounds):
        for name, peer in peers.items():
            took = peer.run({"prompt": prompt, "write": WRITTEN})
            times[name].append((took["read"], took["write"]))
    _print(times, logits)


def _made(folder: Path) -> dict[str, list[str]]:
    """All models, and the commands of their peers."""
    import torch
    import transformers

    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
            rms_norm_eps=1e-5, rope_theta=100000.0, tie_word_embeddings=True,
            initializer_range=0.041666666666666664, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    commands = {"PyTorch eager, fp32": ["torch_peer.py", str(folder)]}
    for kind in KINDS:
        path = folder / f"{kind}.gguf"
        if not path.exists():
            write_gguf(folder, path, kind)
        commands[f"llama.cpp, {kind}"] = ["llama_peer.py", str(path)]
    for precision in PRECISIONS:
        programs = [_program(folder, precision, what) for what in ("read", "write")]
        commands[f"mmpack, {precision}"] = ["mmpack_peer.py", *map(str, programs)]
    return commands


def _program(folder: Path, precision: str, what: str) -> Path:
    """read: cut in three a layer, in pieces of the prompt alone, and the logits of its last token;
    write: one method, for a token."""
    from mmpack.multimethod import build
    from mmpack.multimethod.init import Choices, init
    from mmpack.multimethod.init.choices import Target

    path = folder / f"{precision}-{what}.pte"
    if path.exists():
        return path
    spec = path.with_suffix(".yaml")
    target = Target("xnnpack", {} if precision == "fp32" else {"precision": precision}, True, False)
    split: Any = "qkv/attention/mlp" if what == "read" else "whole"
    init(folder, spec, Choices(CHUNK, CONTEXT, split, cpu=target))
    text = spec.read_text()
    if what == "read":
        body, head = text.split("  lm_head.{n}:")
        text = "  lm_head.{n}:".join([body.replace("n: [chunk, one]", "n: [chunk]"), head])
        text = text.replace("name: [prefill, decode], n: {cycle: [chunk, one]}",
                            "name: [prefill], n: {cycle: [chunk]}")  # fmt: skip
    else:
        text = re.sub(r"  prefill:\n.*?\n\n", "", text, count=1, flags=re.DOTALL)
        text = text.replace("name: [prefill, decode], n: {cycle: [chunk, one]}",
                            "name: [decode], n: {cycle: [one]}")  # fmt: skip
        text = re.sub(r"  chunk: \d+ .*\n", "", text).replace("{shared: [", "{private: [")
    if precision != "fp32":  # with random weights 30 layers at 4 bits leave little but noise
        text = text.replace("    wrapper: decode\n", "    wrapper: decode\n    sqnr: 0.1\n")
        text = text.replace("    reference: logits", "    reference: logits\n    sqnr: 0.1")
    spec.write_text(text)
    build(spec, path, jobs=2, cache=folder / "cache")
    return path


class _Peer:
    def __init__(self, command: list[str]) -> None:
        script, *arguments = command
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def run(self, task: dict[str, Any]) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        answer: dict[str, float] = json.loads(self._line())
        return answer

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self.process.args} ended"
        return line


def _print(times: dict[str, list[tuple[float, float]]], logits: dict[str, numpy.ndarray]) -> None:
    read = {name: statistics.median(r for r, _ in taken) for name, taken in times.items()}
    write = {name: statistics.median(w for _, w in taken) for name, taken in times.items()}
    base = "llama.cpp, f32"
    table = Table("", "read, tokens/s", "ratio", "write, tokens/s", "ratio", "logits off")
    for name in times:
        off = ""
        if "32" in name:
            off = f"{numpy.abs(logits[name] - logits['PyTorch eager, fp32']).max():.1e}"
        table.add_row(
            name,
            f"{PROMPT / read[name]:.0f}",
            f"{read[base] / read[name]:.2f}",
            f"{1 / write[name]:.0f}",
            f"{write[base] / write[name]:.2f}",
            off,
        )
    Console(width=100).print(table)


main()
