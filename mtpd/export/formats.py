"""The file formats of exports: ONNX and PyTorch's own, both from one recorded graph."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtpd.errors import InputError, MtpdError
from mtpd.export.packages import require_packages
from mtpd.export.program import Program, RawProgram
from mtpd.export.record import KEY, ExportRecord
from mtpd.heads.postprocessing import NONE, nms_by_torchvision

# The last one that TensorRT 10 and onnxruntime-web know completely; DeformConv needs 19.
OPSET = 20
# Of an ONNX file: a message of protobuf has at most 2 GiB.
MAX_BYTES = 2**31 - 1


def recorded(program: Program | RawProgram, example: Sequence[Tensor], *, batch: bool, size: bool) -> Any:
    """The graph of a program in eval mode, for inputs like the `example`.

    `batch` and `size` say whether it takes any number of images, and any height and width. InputError for a network
    whose graph depends on them.
    """
    dynamic = torch.export.Dim.DYNAMIC
    first = {0: dynamic} if batch else {}
    sides = (1, 2) if isinstance(program, Program) else (2, 3)
    shapes = [first | (dict.fromkeys(sides, dynamic) if size else {}), *[first] * (len(example) - 1)]
    program.eval().requires_grad_(False)
    try:
        with program.tracing(), quiet(), torch.no_grad():
            return torch.export.export(program, tuple(example), dynamic_shapes=(*shapes,), strict=False)
    except MtpdError:
        raise
    # What a network does that cannot be recorded raises any error.
    except Exception as error:
        advice = 'give a fixed --size and --batch 1' if batch or size else 'its layers cannot be exported'
        raise InputError(f'the graph of the detector cannot be recorded: {_one_line(error)}; {advice}') from error


def torch_bytes(graph: Any, record: ExportRecord) -> bytes:
    """A file for `torch.export.load`, which needs torchvision for its operators and nothing of mtpd."""
    stream = io.BytesIO()
    with quiet():
        plain = graph.run_decompositions({torch.ops.mtpd.nms.default: nms_by_torchvision})
        torch.export.save(plain, stream, extra_files={f'{KEY}.json': record.text()})
    return stream.getvalue()


def onnx_bytes(
    graph: Any, example: Sequence[Tensor], record: ExportRecord, *, inputs: Sequence[str], outputs: Sequence[str]
) -> bytes:
    """An ONNX file, with the record among its metadata."""
    require_packages('onnx', 'onnxscript')
    translations: dict[Any, Any] = {torch.ops.mtpd.nms.default: _onnx_nms}
    try:
        with quiet():
            # Translating changes the graph.
            program = torch.onnx.export(
                copy.deepcopy(graph),
                tuple(example),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                custom_translation_table=translations,
                verbose=False,
            )
    except MtpdError:
        raise
    # Its errors share no class but Exception.
    except Exception as error:
        raise InputError(f'the detector has no ONNX: {_one_line(error)}; export it with --format torch') from error
    assert program is not None
    model = program.model_proto
    # What the exporter notes about Python's source files is no one else's.
    for graph_or_function in (model.graph, *model.functions):
        for node in graph_or_function.node:
            del node.metadata_props[:]
            node.doc_string = ''
        del graph_or_function.metadata_props[:]
    del model.metadata_props[:]
    return onnx_with_record(model, record)


def onnx_with_record(model: Any, record: ExportRecord) -> bytes:
    """The file of an onnx `ModelProto`, with this record."""
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=record.text())
    # Tools show these without knowing mtpd.
    model.metadata_props.add(key='names', value=', '.join(record.classes))
    if record.license is not None:
        model.metadata_props.add(key='license', value=record.license)
    if model.ByteSize() > MAX_BYTES:
        raise InputError(f'the ONNX file would have {model.ByteSize()} bytes, expected at most {MAX_BYTES}; use --half')
    content: bytes = model.SerializeToString()
    return content


def _onnx_nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """`nms` by ONNX's operator, whose groups are classes: the places of those that are kept, as a mask."""
    from onnxscript import opset18

    op: Any = opset18

    # (M, 3): image, group, place.
    places = op.NonMaxSuppression(boxes, scores, 2**31 - 1, iou_threshold, NONE / 2)
    none = op.ConstantOfShape(op.Shape(scores))
    kept = op.ScatterND(none, places, op.Expand(1.0, op.Shape(places, start=0, end=1)))
    return op.Greater(kept, 0.0)


def _one_line(error: Exception) -> str:
    """What the first cause of an error says."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' own progress, warnings and hints for their authors."""
    names = ('torch.onnx', 'torch.export', 'onnxscript', 'onnx_ir', 'torch.fx', 'torch._export')
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
