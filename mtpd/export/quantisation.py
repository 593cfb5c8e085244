"""Weights and activations as 8-bit integers, by ONNX Runtime's static quantisation."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtpd.errors import InputError, MtpdError
from mtpd.export.formats import onnx_with_record, quiet
from mtpd.export.packages import require_packages
from mtpd.export.record import ExportRecord

# The layers of the network. What computes boxes has none of them, and stays in float32.
LAYERS = ('Conv', 'Gemm', 'MatMul')


def quantised(
    content: bytes,
    record: ExportRecord,
    num_batches: int,
    batch_at: Callable[[int], Mapping[str, np.ndarray]],
    *,
    percentile: float,
) -> bytes:
    """An ONNX file whose layers compute with integers: weights for each channel, activations by their range.

    The last layers, whose outputs are decoded, keep float32. `record` describes the new file; `batch_at` gives inputs
    by name, of which ranges are measured. A range has `percentile` % of the values: few values lie far outside, and
    would leave the others a few steps of 255.
    """
    require_packages('onnx', 'onnxruntime')
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )  # fmt: skip
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it ships no types
        """Hands the batches to the calibration, one at a time, which then keeps no more than one in memory."""

        def __init__(self) -> None:
            self._numbers = iter(range(0))

        def __len__(self) -> int:
            return num_batches

        def set_range(self, start_index: int, end_index: int) -> None:
            """Those that `get_next` gives from now on."""
            self._numbers = iter(range(start_index, end_index))

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            """None after the last."""
            number = next(self._numbers, None)
            return None if number is None else batch_at(number)

    with tempfile.TemporaryDirectory() as folder, quiet(), contextlib.redirect_stdout(io.StringIO()):
        source, prepared, target = (Path(folder) / f'{name}.onnx' for name in ('source', 'prepared', 'target'))
        source.write_bytes(content)
        try:
            # Norms become part of the convolutions before them.
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(LAYERS),
                nodes_to_exclude=_last_layers(onnx.load(prepared)),
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
                calibrate_method=CalibrationMethod.Percentile,
                extra_options={'MatMulConstBOnly': True, 'CalibPercentile': percentile, 'CalibStridedMinMax': 1},
            )
        except MtpdError:
            raise
        # Its errors share no class but Exception.
        except Exception as error:
            reason = ' '.join(str(error).split())[:200]
            raise InputError(f'--int8: ONNX Runtime cannot quantise it: {reason}; export it without --int8') from error
        return onnx_with_record(onnx.load(target), record)


def _last_layers(model: Any) -> list[str]:
    """Layers from which no other one is reached, and products with a vector (GFL's integral), which decode boxes."""
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    sizes = {one.name: list(one.dims) for one in model.graph.initializer}
    is_last: dict[str, bool] = {}
    # Nodes come after those that they read.
    for node in reversed(model.graph.node):
        after = [one for name in node.output for one in readers.get(name, [])]
        is_last[node.name] = not any(_is_layer(one, sizes) or not is_last[one.name] for one in after)
    return [
        node.name
        for node in model.graph.node
        if node.op_type in LAYERS and (is_last[node.name] or not _is_layer(node, sizes))
    ]


def _is_layer(node: Any, sizes: Mapping[str, list[int]]) -> bool:
    if node.op_type == 'Conv':
        return True
    return node.op_type in LAYERS and min(sizes.get(node.input[1], [2, 2])[-2:], default=1) > 1
