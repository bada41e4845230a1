# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Boxes of a picture from an exported detection model, with ONNX Runtime, NumPy and OpenCV.

Usage:
    python detect.py best.onnx picture.jpg boxes.jpg
    python detect.py best.onnx picture.jpg boxes.jpg --score 0.1
    python detect.py best.onnx picture.jpg boxes.jpg _cpu.so    # scans in the operator library, docs/deploy.md

Takes files of every export of a YOLO model for one picture at a time: fixed or dynamic, with nms=True, with an
end-to-end head, float32 or float16.
"""

from __future__ import annotations

import argparse
import ast
import sys
import time

import cv2
import numpy as np
import onnxruntime


def letterbox(image: np.ndarray, height: int, width: int) -> tuple[np.ndarray, float, int, int]:
    """Return a picture as the model's input (1, 3, H, W), its scale there, and where its left upper corner lies."""
    scale = min(height / image.shape[0], width / image.shape[1])
    small = cv2.resize(image, tuple(max(1, round(side * scale)) for side in (image.shape[1], image.shape[0])))
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    canvas = np.full((height, width, 3), 114, np.uint8)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    x = canvas[None, ..., ::-1].transpose(0, 3, 1, 2)  # BGR to RGB
    return np.ascontiguousarray(x, np.float32) / 255, scale, left, top


def boxes_of(out: np.ndarray, confidence: float = 0.25, overlap: float = 0.7) -> np.ndarray:
    """Return (x1, y1, x2, y2, score, class) in pixels of the input, best first.

    Args:
        out (np.ndarray): The model's output for one picture: rows of six, if NMS is in the file or the head needs none;
            else (4 + classes, anchors), centre, size and a score for each class.
        confidence (float): The smallest score of a box.
        overlap (float): Boxes of a class that overlap more (IoU) are one.
    """
    if out.shape[1] == 6:
        return out[out[:, 4] > confidence]
    out = out.T
    out = out[out[:, 4:].max(1) > confidence]
    size, scores, kinds = out[:, 2:4], out[:, 4:].max(1), out[:, 4:].argmax(1)
    corners = out[:, :2] - size / 2
    keep = cv2.dnn.NMSBoxesBatched(np.hstack([corners, size]), scores, kinds, confidence, overlap) if len(out) else []
    rows = np.hstack([corners, corners + size, scores[:, None], kinds[:, None]])[np.asarray(keep, int).ravel()]
    return rows[np.argsort(-rows[:, 4])]


def main(model: str, source: str, target: str, library: str = "", score: float = 0.25) -> None:
    """Find boxes in a picture, print and draw them."""
    if not 0 <= score <= 1:
        raise ValueError(f"--score is a number from 0 to 1, not {score:g}")
    if not model.endswith(".onnx"):
        raise ValueError(f"{model} is no ONNX file: yolo export model={model} format=onnx")
    options = onnxruntime.SessionOptions()
    if library:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta().custom_metadata_map
    if meta.get("task") != "detect":
        raise ValueError(f"{model} is no exported detection model: its task is {meta.get('task')}")
    if meta.get("head") == "RTDETRDecoder":
        raise ValueError(f"{model} is of RT-DETR, whose boxes are of another form: use `yolo predict`")
    given = session.get_inputs()[0]
    if isinstance(given.shape[0], int) and given.shape[0] != 1:
        raise ValueError(f"{model} takes {given.shape[0]} pictures at once, and this program one: export with batch=1")
    names, (height, width) = ast.literal_eval(meta["names"]), ast.literal_eval(meta["imgsz"])
    image = cv2.imread(source)
    if image is None:
        raise ValueError(f"{source} is not there or is no picture")
    x, scale, left, top = letterbox(image, height, width)
    begin = time.perf_counter()
    out = session.run(None, {given.name: x.astype(np.float16 if "float16" in given.type else np.float32)})[0]
    milliseconds = 1000 * (time.perf_counter() - begin)
    found = boxes_of(out[0].astype(np.float32), score)
    for *corners, sure, kind in found:
        x1, y1, x2, y2 = ((np.array(corners) - (left, top, left, top)) / scale).round().astype(int).tolist()
        print(names[int(kind)], f"{sure:.3f}", x1, y1, x2, y2)
        cv2.rectangle(image, (x1, y1), (x2, y2), (0, 0, 255), 2)
    print(f"{len(found)} boxes, {milliseconds:.0f} ms", file=sys.stderr)
    if not cv2.imwrite(target, image):
        raise ValueError(f"{target} cannot be written")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an exported detection model")
    parser.add_argument("source", help="a picture")
    parser.add_argument("target", help="where the picture with boxes is written")
    parser.add_argument("library", nargs="?", default="", help="the operator library")
    parser.add_argument("--score", type=float, default=0.25, help="the smallest score of a box (default 0.25)")
    try:
        main(**vars(parser.parse_args()))
    except Exception as e:  # whatever the reason, a reader of a terminal wants the sentence
        sys.exit(f"detect.py: {e}")
