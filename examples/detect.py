"""Finds objects in an image by a file of `mtpd-export`: python detect.py student.onnx image.jpg --out found.png

Needs numpy, onnxruntime and, to read and draw images, Pillow; neither PyTorch nor mtpd.
"""

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw


def detect(session: onnxruntime.InferenceSession, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Boxes (N, 4), absolute xyxy in px of the image uint8 (H, W, 3) RGB, scores (N,), and names of classes."""
    record = json.loads(session.get_modelmeta().custom_metadata_map['mtpd'])
    geometry, (height, width) = record['geometry'], image.shape[:2]
    new_width, new_height = geometry['scale']
    if geometry['keep_ratio']:
        long, short = sorted(geometry['scale'], reverse=True)
        factor = min(long / max(height, width), short / min(height, width))
        offset = 0.0 if geometry.get('rounds_down') else 0.5
        new_height, new_width = int(height * factor + offset), int(width * factor + offset)
    pixels = resize(image, new_height, new_width)
    batch = np.zeros((1, *record.get('size', pixels.shape[:2]), 3), np.uint8)
    batch[0, :new_height, :new_width] = pixels  # of an input of a fixed size the upper left part
    sizes = np.array([[new_height, new_width]])
    boxes, scores, labels = (one[0] for one in session.run(None, {'images': batch, 'sizes': sizes})[:3])
    found = scores > 0
    boxes = boxes[found] * np.array([width / new_width, height / new_height] * 2)
    return boxes, scores[found], [record['classes'][label] for label in labels[found]]


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image between its pixels, as OpenCV's bilinear resize has it."""
    for axis, side in enumerate((height, width)):
        places = (np.arange(side) + 0.5) * image.shape[axis] / side - 0.5
        first = np.floor(places).clip(0, image.shape[axis] - 1).astype(int)
        weight = (places - first).clip(0, 1).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        after = np.minimum(first + 1, image.shape[axis] - 1)
        image = image.take(first, axis) * (1 - weight) + image.take(after, axis) * weight
    return image.round().astype(np.uint8)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Find objects in an image and draw them.')
    parser.add_argument('model')
    parser.add_argument('image')
    parser.add_argument('--out', default='found.png')
    parser.add_argument('--min-score', type=float, default=0.4)
    options = parser.parse_args()
    draw = ImageDraw.Draw(picture := Image.open(options.image).convert('RGB'))
    for box, score, name in zip(*detect(onnxruntime.InferenceSession(options.model), np.array(picture)), strict=True):
        if score >= options.min_score:
            text = f'{name} {score:.2f}'
            print(f'{text} at {box.round().astype(int).tolist()}')
            draw.rectangle(box.tolist(), outline='red', width=2)
            draw.text(tuple(box[:2].clip(0) + 3), text, 'white', font_size=16, stroke_width=1, stroke_fill='red')
    picture.save(options.out)
