"""ExecuTorch's QNN quantizer, as mmpack's precisions want it.

Source: ExecuTorch 1.5, `backends/qualcomm/export_utils.py` (`make_quantizer`).
"""

from __future__ import annotations

from typing import Any

BLOCK_AXES = {"aten::linear": 2, "aten::conv2d": 4}
"""Operators whose weights can have a scale for each block of inputs -> rank of the weight."""


def make_quantizer(soc: str, precision: str, group: int) -> Any:
    """A quantizer for an HTP chip. Weights have a scale for each output channel, or, with
    `16a4w_block`, for each `group` of its inputs; activations the range that calibration saw."""
    from executorch.backends.qualcomm.quantizer.quantizer import QnnQuantizer, QuantDtype
    from executorch.backends.qualcomm.serialization.qc_schema import QcomChipset
    from torchao.quantization.pt2e import MinMaxObserver

    class Quantizer(QnnQuantizer):  # type: ignore[misc]
        def annotate(self, model: Any) -> Any:
            if precision == "16a4w_block":
                self.set_block_size_map(_blocks(model, group))
            return super().annotate(model)

    quantizer = Quantizer(soc_model=QcomChipset[soc])
    quantizer.set_default_quant_config(
        QuantDtype[f"use_{precision}"],
        is_conv_per_channel=True,
        is_linear_per_channel=True,
        act_observer=MinMaxObserver,
    )
    return quantizer


def _blocks(model: Any, group: int) -> dict[str, tuple[int, ...]]:
    """Node -> size of a block of its weight. Raises ValueError for one that has no whole number
    of blocks."""
    found = {}
    for node in model.graph.nodes:
        rank = BLOCK_AXES.get(getattr(getattr(node.target, "_schema", None), "name", ""))
        if rank is None or node.args[1].op != "get_attr":
            continue
        inputs = node.args[1].meta["val"].shape[1]
        if inputs % group:
            raise ValueError(
                f"the {inputs} inputs of its weight {node.args[1].target!r} are no multiple of "
                f"{group}, the `group` that shares a scale at 16a4w_block"
            )
        found[node.name] = (1, group, *[1] * (rank - 2))
    return found
