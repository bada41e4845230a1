# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Makes what upstream's tests would download: `python standins.py FOLDER`, with the release to be tested on the path.

Weights are random, under the names that the tests load; detectors among them see something in the two pictures that
Ultralytics ships and nothing on blank ones, which is as much as the tests ask of a prediction. Data sets are crops of
the same pictures with rectangles painted on and labelled. Everything lies below FOLDER/weights, FOLDER/datasets and
FOLDER/torch, where Ultralytics' settings and TORCH_HOME must point.
"""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ultralytics import RTDETR, YOLO, YOLOE, __version__
from ultralytics.cfg import TASK2DATA
from ultralytics.utils import ASSETS, DEFAULT_CFG_DICT, ROOT, YAML

SEEN, UNSEEN = 2.5, -4.5  # logits that class 0 shall have on pictures and on blank images
SIZES = (32, 160, 320, 640)  # image sizes that the tests predict at
PALETTE = np.random.default_rng(1).integers(0, 256, (100, 3)).tolist()  # a colour for each class
# Where the tests use them: demo videos of the solutions, as (width, height)
VIDEOS = {
    "solutions_ci_demo.mp4": (640, 360),
    "solution_ci_parking_demo.mp4": (640, 360),
    "decelera_landscape_min.mov": (640, 360),
    "solution_ci_pose_demo.mp4": (360, 640),
    "solution_vertical_demo.mp4": (360, 640),
    "decelera_portrait_min.mov": (360, 640),
}


def names_in(dataset: str) -> dict[int, str]:
    """Return the class names of one of upstream's data sets."""
    return YAML.load(ROOT / "cfg/datasets" / dataset)["names"]


def pictures() -> list[np.ndarray]:
    """Return the pictures that Ultralytics ships, as BGR arrays."""
    return [cv2.imread(str(ASSETS / name)) for name in ("bus.jpg", "zidane.jpg")]


# Weights


def tensors(size: int, channels: int) -> Tensor:
    """Return the pictures as a batch: (2, channels, size, size)."""
    stack = np.stack([cv2.resize(picture, (size, size))[..., ::-1] for picture in pictures()])
    x = torch.from_numpy(stack.copy()).permute(0, 3, 1, 2).float() / 255
    return x.mean(1, keepdim=True) if channels == 1 else x


def blanks(size: int, channels: int) -> Tensor:
    """Return black, padding's grey, and black with a padded margin: (3, channels, size, size)."""
    x = torch.zeros(3, channels, size, size)
    x[1] = 114 / 255
    x[2, :, size * 2 // 3 :] = 114 / 255
    x[2, :, :, size * 2 // 3 :] = 114 / 255
    return x


@torch.no_grad()
def spread(model: nn.Module, channels: int) -> None:
    """Give every BatchNorm the statistics of the pictures: random features keep their scale through all layers then."""
    norms = {m: m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()
    for size in SIZES[1:]:
        x = tensors(size, channels)
        model(torch.cat([x, x.flip(3)]))
    for norm, momentum in norms.items():
        norm.momentum = momentum
    model.eval()


@torch.no_grad()
def see(model: nn.Module, channels: int) -> None:
    """Have the coarsest level of a detector answer class 0 to pictures, and nothing to blank images."""
    head, found = model.model[-1], {}
    branches = [getattr(head, name, None) for name in ("cv3", "one2one_cv3")]
    readouts = [branch[-1][-1] for branch in branches if branch is not None]
    watched = [
        conv.register_forward_pre_hook(lambda conv, x: found.setdefault(conv, []).append(x[0].mean((2, 3))))
        for conv in readouts
    ]
    wanted = []
    for kind, logit in ((tensors, SEEN), (blanks, UNSEEN)):
        for size in SIZES:
            batch = kind(size, channels)
            model(batch)
            wanted += [logit] * len(batch)
    for hook in watched:
        hook.remove()
    for conv in readouts:
        features = torch.cat(found[conv])
        # The smallest weights that give every image its logit, found with the bias as one more feature
        solved = torch.linalg.pinv(nn.functional.pad(features, (0, 1), value=1.0), rtol=1e-3) @ torch.tensor(wanted)
        conv.weight[0, :, 0, 0], conv.bias[0] = solved[:-1], solved[-1]


def final_convs(head: nn.Module, *names: str) -> Iterator[nn.Conv2d]:
    """Yield the last convolutions of a head's branches, those of the one-to-one twin too."""
    for name in (*names, *(f"one2one_{name}" for name in names)):
        for level in getattr(head, name, None) or ():
            last = level[-1] if isinstance(level, nn.Sequential) else level
            if isinstance(last, nn.Conv2d):
                yield last


@torch.no_grad()
def shape(model: nn.Module) -> None:
    """Give boxes an extent, keypoints a place near their box, and masks an area."""
    head = model.model[-1]
    kind = type(head).__name__
    if getattr(head, "reg_max", 16) == 1:  # distances as they are, not as distributions
        for conv in final_convs(head, "cv2"):
            conv.weight *= 0.1
            conv.bias.fill_(2.0)
    for conv in final_convs(head, *(["cv4", "cv4_kpts"] if kind.startswith("Pose") else [])):
        conv.weight *= 0.1
    if hasattr(head, "proto"):
        for conv in final_convs(head, "cv5" if kind.startswith("YOLOE") else "cv4"):
            conv.bias.fill_(1.0)
        head.proto.cv3.bn.bias.fill_(1.0)
    if kind.startswith("YOLOE"):
        for name in ("cv4", "one2one_cv4"):
            for contrast in getattr(head, name, None) or ():
                contrast.bias.fill_(1.0)


def store(path: Path, model: nn.Module, task: str, names: dict[int, str]) -> None:
    """Save a checkpoint as upstream's trainer leaves it."""
    args = {**DEFAULT_CFG_DICT, "task": task, "mode": "train", "data": TASK2DATA.get(task), "epochs": 1, "imgsz": 640}
    args["model"] = f"{path.stem}.yaml"
    model.names, model.task, model.args = dict(names), task, args
    for p in model.parameters():
        p.requires_grad = False
    content = {"epoch": -1, "model": model.half().eval(), "train_args": args, "version": __version__}
    content |= dict.fromkeys(("best_fitness", "ema", "updates", "optimizer"))
    content |= {"date": "2026-01-01T00:00:00", "train_metrics": {"fitness": 0.0}, "train_results": {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def detector(path: Path, config: str, task: str, names: dict[int, str], channels: int = 3) -> None:
    """Make the weights of a model that has boxes, or one of its kin that need no care."""
    torch.manual_seed(zlib.crc32(path.name.encode()))
    kind = type(YOLO(config).model)
    model = kind(config, ch=channels, verbose=False, **({} if task == "depth" else {"nc": len(names)}))
    if task in ("detect", "segment", "pose", "obb"):
        spread(model, channels)
        if not type(model.model[-1]).__name__.startswith("YOLOE"):
            see(model, channels)
        shape(model)
    store(path, model, task, names)


class Words(nn.Module):
    """Text encoder: the mean of random vectors, one a token."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(49408, 512)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens: (N, 77) to (N, 512)."""
        return self.table(tokens.long()).mean(1)


def weights(folder: Path, hub: Path) -> None:
    """Make all weights."""
    coco, dota, streets = (names_in(f"{name}.yaml") for name in ("coco8", "dota8", "cityscapes8"))
    rows = [(f"yolo26{s}{end}", task, names) for s in "ns" for end, task, names in (
        ("", "detect", coco), ("-seg", "segment", coco), ("-pose", "pose", {0: "person"}), ("-obb", "obb", dota)
    )]  # fmt: skip
    rows += [("yolo26n-cls", "classify", names_in("ImageNet.yaml")), ("yolo26n-sem", "semantic", streets)]
    rows += [("yolo26n-depth", "depth", {0: "depth"}), ("yolo11n", "detect", coco), ("yolov8n", "detect", coco)]
    rows += [("yoloe-26n-seg", "segment", coco)]
    for stem, task, names in rows:
        detector(folder / f"{stem}.pt", f"{stem}.yaml", task, names)
    detector(folder / "yolo11n-grayscale.pt", "yolo11n.yaml", "detect", coco, channels=1)
    detector(folder / "FastSAM-s.pt", "yolov8s-seg.yaml", "segment", {0: "object"})

    torch.manual_seed(0)
    store(folder / "rtdetr-l.pt", RTDETR("rtdetr-l.yaml").model, "detect", coco)
    from ultralytics.models.sam.build import build_mobile_sam

    sam = build_mobile_sam()
    nn.init.constant_(sam.mask_decoder.iou_prediction_head.layers[-1].bias, 0.9)  # its masks pass as good ones
    torch.save(sam.state_dict(), folder / "mobile_sam.pt")
    torch.jit.trace(Words().eval(), torch.zeros(1, 77, dtype=torch.long)).save(str(folder / "mobileclip2_b.ts"))
    try:  # needs a tokenizer, which only the tests of YOLOE ask for
        import clip  # noqa: F401
    except ImportError:
        print("no yoloe-26n-seg-pf.pt: the clip package is not installed")
    else:
        free = YOLOE(folder / "yoloe-26n-seg.pt")
        free.set_vocab(free.get_vocab(list(coco.values())), list(coco.values()))
        for part in ("text_model", "clip_model", "criterion"):
            if hasattr(free.model, part):
                setattr(free.model, part, None)
        store(folder / "yoloe-26n-seg-pf.pt", free.model, "segment", coco)

    import torchvision.models

    hub.mkdir(parents=True, exist_ok=True)
    for name in ("resnet18", "resnet50", "resnet101"):  # backbones of *-cls-resnet*.yaml
        address = torchvision.models.get_model_weights(name).DEFAULT.url
        torch.save(torchvision.models.get_model(name, weights=None).state_dict(), hub / address.rpartition("/")[2])
    (folder / "path with spaces").mkdir()
    for path in folder.glob("yolo26n*.pt"):
        shutil.copy2(path, folder / "path with spaces")


# Data


class Painter:
    """Draws labelled pictures; the same ones at every run."""

    def __init__(self):
        self.rng, self.sources = np.random.default_rng(0), pictures()

    def view(self, width: int, height: int) -> np.ndarray:
        """Return a random part of one of the pictures at this size."""
        source = self.sources[self.rng.integers(len(self.sources))]
        part = min(source.shape[1] / width, source.shape[0] / height) * self.rng.uniform(0.7, 1)
        w, h = int(width * part), int(height * part)
        x, y = (int(self.rng.integers(room + 1)) for room in (source.shape[1] - w, source.shape[0] - h))
        return cv2.resize(source[y : y + h, x : x + w], (width, height))

    def boxes(self, number: int) -> np.ndarray:
        """Return normalised boxes inside the picture: (number, 4), centre and size."""
        size = self.rng.uniform(0.15, 0.4, (number, 2))
        return np.hstack([size / 2 + self.rng.uniform(0, 1, (number, 2)) * (1 - size), size])

    @staticmethod
    def corners(box: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom in pixels."""
        low, high = (box[:2] - box[2:] / 2) * (width, height), (box[:2] + box[2:] / 2) * (width, height)
        return (*low.astype(int).tolist(), *high.astype(int).tolist())

    def labelled(self, task: str, classes: int, width: int, height: int) -> tuple[np.ndarray, str]:
        """Return a picture and its label file's text."""
        image, rows = self.view(width, height), []
        for box in self.boxes(3):
            of = int(self.rng.integers(min(classes, 5)))
            left, top, right, bottom = self.corners(box, width, height)
            cv2.rectangle(image, (left, top), (right, bottom), PALETTE[of], -1)
            around = [[x / width, y / height] for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]
            if task == "detect":
                values = box
            elif task == "pose":
                points = box[:2] + self.rng.uniform(-0.4, 0.4, (17, 2)) * box[2:]
                values = np.concatenate([box, np.hstack([points, np.full((17, 1), 2)]).ravel()])
            else:  # segment, obb
                values = np.ravel(around)
            rows.append(f"{of} " + " ".join(f"{v:.6f}" for v in values))
        return image, "\n".join(rows) + "\n"


def as_file(path: Path, image: np.ndarray) -> None:
    """Write a picture in the format that the ending names, or one that readers take for it."""
    formats = {"jpg": "JPEG", "jpeg": "JPEG", "mpo": "JPEG", "tif": "TIFF", "tiff": "TIFF", "dng": "TIFF"}
    formats |= {"jp2": "JPEG2000", "heic": "AVIF"}
    ending = path.suffix[1:]
    Image.fromarray(image[..., ::-1]).save(path, format=formats.get(ending, ending.upper()))


def grey(path: Path, image: np.ndarray) -> None:
    """Write a picture with one channel."""
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))


def ten_bands(path: Path, image: np.ndarray) -> None:
    """Write a picture with ten channels."""
    bands = [Image.fromarray(np.ascontiguousarray(image[..., i % 3] // (i // 3 + 1))) for i in range(10)]
    bands[0].save(path, save_all=True, append_images=bands[1:])


def boxes_set(
    folder: Path,
    task: str,
    classes: int,
    splits: dict[str, list[str]],
    size: tuple[int, int] = (640, 480),
    write: Callable[[Path, np.ndarray], None] = as_file,
) -> None:
    """Make a data set of labelled pictures.

    Args:
        folder (Path): The data set.
        task (str): What the labels describe.
        classes (int): Number of classes.
        splits (dict[str, list[str]]): For each split the endings of its pictures.
        size (tuple[int, int]): Width and height.
        write (Callable): Writes a picture.
    """
    painter = Painter()
    for split, endings in splits.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i, ending in enumerate(endings):
            image, labels = painter.labelled(task, classes, *size)
            write(folder / f"images/{split}/{split}{i:03}.{ending}", image)
            (folder / f"labels/{split}/{split}{i:03}.txt").write_text(labels, encoding="utf-8")


def maps_sets(folder: Path) -> None:
    """Make the data sets with a map to each picture: classes of streets, and depth in millimetres."""
    painter = Painter()
    raw = [k for k, v in YAML.load(ROOT / "cfg/datasets/cityscapes8.yaml")["label_mapping"].items() if v in range(7)]
    down, across = np.mgrid[0:480, 0:640]
    for split in ("train", "val"):
        for name in ("cityscapes8/images", "cityscapes8/masks", "depth8-png/images", "depth8-png/depth"):
            (folder / name / split).mkdir(parents=True)
        for i in range(4):
            image = painter.view(1024, 512)
            classes = np.full((512, 1024), raw[0], np.uint8)
            for box in painter.boxes(6):
                left, top, right, bottom = painter.corners(box, 1024, 512)
                classes[top:bottom, left:right] = of = int(painter.rng.choice(raw))
                image[top:bottom, left:right] = PALETTE[of]
            cv2.imwrite(str(folder / f"cityscapes8/images/{split}/{i}.png"), image)
            cv2.imwrite(str(folder / f"cityscapes8/masks/{split}/{i}.png"), classes)
            cv2.imwrite(str(folder / f"depth8-png/images/{split}/{i}.jpg"), painter.view(640, 480))
            depth = (1000 + 4 * down + 2 * across + 300 * i).astype(np.uint16)
            cv2.imwrite(str(folder / f"depth8-png/depth/{split}/{i}.png"), depth)


def datasets(folder: Path) -> None:
    """Make all data sets."""
    four = {"train": ["jpg"] * 4, "val": ["jpg"] * 4}
    boxes_set(folder / "coco8", "detect", 80, four)
    boxes_set(folder / "coco8-seg", "segment", 80, four)
    boxes_set(folder / "coco8-pose", "pose", 1, four)
    boxes_set(folder / "dota8", "obb", 15, four, (640, 640))
    boxes_set(folder / "coco8-grayscale", "detect", 80, four, write=grey)
    tiff = {split: ["tiff"] * 4 for split in four}
    boxes_set(folder / "coco8-multispectral", "detect", 80, tiff, write=ten_bands)
    formats = {"train": "avif bmp dng heic jp2 jpeg".split(), "val": "jpg mpo png tif tiff webp".split()}
    boxes_set(folder / "coco12-formats", "detect", 80, formats)
    boxes_set(folder / "coco128", "detect", 80, {"train2017": ["jpg"] * 16})
    boxes_set(folder / "coco128-seg", "segment", 80, {"train2017": ["jpg"] * 16})
    maps_sets(folder)
    painter, codes = Painter(), list(YAML.load(ROOT / "cfg/datasets/ImageNet.yaml")["map"])
    for number in (10, 100):
        for split, each in (("train", 2), ("val", 1)):
            for code in codes[:number]:
                (folder / f"imagenet{number}/{split}/{code}").mkdir(parents=True)
                for i in range(each):
                    as_file(folder / f"imagenet{number}/{split}/{code}/{i}.jpg", painter.view(128, 128))
    (folder / "annotations").mkdir()
    for name, of in (("coco8-seg", "instances"), ("coco8-pose", "person_keypoints")):
        images = [p.name for p in sorted((folder / f"{name}/images/val").iterdir())]
        whole = {"images": [{"id": i, "file_name": n, "width": 640, "height": 480} for i, n in enumerate(images)]}
        whole["categories"] = [{"id": i, "name": f"class {i}"} for i in range(1, 91)]
        area = {"bbox": [100, 100, 200, 150], "area": 30000, "segmentation": [[100, 100, 300, 100, 300, 250, 100, 250]]}
        area |= {"category_id": 1, "iscrowd": 0, "keypoints": [150, 150, 2] * 17, "num_keypoints": 17}
        whole["annotations"] = [{"id": i + 1, "image_id": i, **area} for i in range(len(images))]
        (folder / f"annotations/{of}_val2017.json").write_text(json.dumps(whole), encoding="utf-8")


def demos(weights: Path) -> None:
    """Make the files of the solutions' tests."""
    folder = weights / "solution_assets"
    folder.mkdir()
    bus = pictures()[0]
    shutil.copy2(ASSETS / "bus.jpg", folder / "boats.jpg")
    shutil.copy2(weights / "yolo26n.pt", folder / "solutions_ci_parking_model.pt")
    for name, (width, height) in VIDEOS.items():
        video = cv2.VideoWriter(str(folder / name), cv2.VideoWriter_fourcc(*"mp4v"), 10, (width, height))
        for t in range(8):  # the camera moves over the picture
            video.write(np.ascontiguousarray(bus[200 + 3 * t :, 20 + 6 * t :][:height, :width]))
        video.release()
    areas = [(50, 50, 250, 300), (300, 50, 600, 300)]
    points = [{"points": [[a, b], [c, b], [c, d], [a, d]]} for a, b, c, d in areas]
    (folder / "solution_ci_parking_areas.json").write_text(json.dumps(points), encoding="utf-8")
    painter = Painter()
    with zipfile.ZipFile(folder / "4-imgs-similaritysearch.zip", "w") as archive:
        for i in range(4):
            data = cv2.imencode(".jpg", painter.view(224, 224))[1].tobytes()
            archive.writestr(f"4-imgs-similaritysearch/{i}.jpg", data)


def main(folder: Path) -> None:
    """Make everything in a new folder."""
    torch.set_num_threads(1)
    datasets(folder / "datasets")
    weights(folder / "weights", folder / "torch/hub/checkpoints")
    demos(folder / "weights")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
