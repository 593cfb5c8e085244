"""Weights and activations as 8-bit integers, by ONNX Runtime's static quantisation."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtpd.errors import InputError
from mtpd.export.formats import onnx_with_record, quiet
from mtpd.export.packages import require_packages
from mtpd.export.record import ExportRecord

# The layers of the network. What computes boxes has none of them, and stays in float32.
LAYERS = ('Conv', 'Gemm', 'MatMul')


def quantised(content: bytes, record: ExportRecord, batches: Iterable[Mapping[str, np.ndarray]]) -> bytes:
    """An ONNX file whose layers compute with integers: weights for each channel, activations by the range in `batches`.

    `record` describes the new file; `batches` are inputs by name.
    """
    require_packages('onnx', 'onnxruntime')
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it ships no types
        """Hands the batches to the calibration, one at a time."""

        def __init__(self) -> None:
            self._batches: Iterator[Mapping[str, np.ndarray]] = iter(batches)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            """None after the last."""
            return next(self._batches, None)

    with tempfile.TemporaryDirectory() as folder, quiet():
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
                nodes_to_exclude=_small_products(onnx.load(prepared)),
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
                extra_options={'MatMulConstBOnly': True},
            )
        # Its errors share no class but Exception.
        except Exception as error:
            reason = ' '.join(str(error).split())[:200]
            raise InputError(f'--int8: ONNX Runtime cannot quantise it: {reason}; export it without --int8') from error
        return onnx_with_record(onnx.load(target), record)


def _small_products(model: Any) -> list[str]:
    """The products with a vector, which decode boxes (GFL's integral), not layers."""
    sizes = {one.name: list(one.dims) for one in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in ('MatMul', 'Gemm') and min(sizes.get(node.input[1], [2, 2])[-2:], default=1) < 2
    ]
