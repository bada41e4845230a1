# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Draw the digits detection set: scikit-learn's handwritten digits over varied backgrounds, with exact boxes.

`datasets/digits.yaml` calls `build` on first use. To draw the set by hand, into a folder that does not exist yet:

    python datasets/digits.py path/to/new/folder

Nothing is downloaded: the 1797 digits and the two photographs come inside the scikit-learn package. Everything is drawn
with NumPy arithmetic from a fixed seed, so every machine gets the same pixels and the same label files.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SEED = 8
IMAGE_SIZE = 128  # pixels, both sides
SPLITS = {"train": 512, "val": 128}  # number of images
DIGITS_PER_IMAGE = 4, 7  # fewest and most; fewer where no room is left
DIGIT_HEIGHT = 20, 56  # pixels, before rotation
MAX_ROTATION = 15  # degrees, both ways
MIN_CONTRAST = 90  # grey levels between the ink and the background around it
MIN_INK = 0.25  # paler ink than this counts as invisible and is not drawn, so that a box ends where the eye sees it end
GAP = 2  # pixels kept free between two boxes, and between a box and the border

# The digits come in 14 blocks, one for each filled-in form. Whole forms are held out, so that handwriting seen in
# training does not come back in validation. The photographs are cut in the same spirit: their right part is for val.
FIRST_VAL_DIGIT = 1415
FIRST_VAL_COLUMN = 448


class Scene(NamedTuple):
    """One drawn image and what is true about it.

    Attributes:
        image (np.ndarray): The picture, uint8 (IMAGE_SIZE, IMAGE_SIZE, 3) in RGB order.
        background (np.ndarray): The picture before the digits were drawn, same shape.
        ink (np.ndarray): Opacity of the ink in each pixel, float (IMAGE_SIZE, IMAGE_SIZE), 0 where there is none.
        boxes (np.ndarray): Class and box of each digit, int (n, 5): class, left, top, right, bottom; right and bottom
            are the first pixel column and row after the ink.
        samples (list[int]): Index of each digit in scikit-learn's set.
    """

    image: np.ndarray
    background: np.ndarray
    ink: np.ndarray
    boxes: np.ndarray
    samples: list[int]


class Sources(NamedTuple):
    """What scenes are drawn from.

    Attributes:
        digits (np.ndarray): Ink of each digit, 0 to 1, (1797, 8, 8).
        classes (np.ndarray): Class of each digit, (1797,).
        photos (list[np.ndarray]): Photographs, float 0 to 255, (H, W, 3).
    """

    digits: np.ndarray
    classes: np.ndarray
    photos: list[np.ndarray]


def load_sources() -> Sources:
    """Read the digits and the photographs that scikit-learn ships.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            f"datasets/digits.py draws the digits that scikit-learn ships, but '{e.name}' is not installed. "
            "Run 'pip install scikit-learn' and try again.",
            name=e.name,
        ) from e

    digits = load_digits()
    photos = [photo.astype(np.float64) for photo in load_sample_images().images]
    return Sources(digits.images / 16.0, digits.target, photos)


def resample(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Read an image at fractional positions, bilinearly; outside it the nearest border pixel counts.

    Args:
        image (np.ndarray): Image to read, (H, W) or (H, W, C).
        y (np.ndarray): Row positions, any shape S.
        x (np.ndarray): Column positions, the same shape S.

    Returns:
        (np.ndarray): Values at these positions, of shape S or S + (C,).
    """
    y, x = y.clip(0, image.shape[0] - 1), x.clip(0, image.shape[1] - 1)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom, right = np.minimum(top + 1, image.shape[0] - 1), np.minimum(left + 1, image.shape[1] - 1)
    fy, fx = y - top, x - left
    if image.ndim == 3:
        fy, fx = fy[..., None], fx[..., None]
    upper = image[top, left] * (1 - fx) + image[top, right] * fx
    lower = image[bottom, left] * (1 - fx) + image[bottom, right] * fx
    return upper * (1 - fy) + lower * fy


def enlarge(image: np.ndarray, top: float, left: float, height: float, width: float) -> np.ndarray:
    """Stretch one part of an image to the full scene size."""
    steps = (np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE
    y, x = np.meshgrid(top + steps * height - 0.5, left + steps * width - 0.5, indexing="ij")
    return resample(image, y, x)


def draw_background(rng: np.random.Generator, photos: list[np.ndarray], split: str) -> np.ndarray:
    """Draw a photograph's part, a colour gradient or soft clouds, with its own tint, contrast and grain.

    Returns:
        (np.ndarray): Background, float 0 to 255, (IMAGE_SIZE, IMAGE_SIZE, 3).
    """
    kind = rng.uniform()
    if kind < 0.6:  # part of a photograph
        photo = photos[rng.integers(len(photos))]
        photo = photo[:, :FIRST_VAL_COLUMN] if split == "train" else photo[:, FIRST_VAL_COLUMN:]
        side = rng.uniform(60, min(photo.shape[:2]))
        top, left = rng.uniform(0, photo.shape[0] - side), rng.uniform(0, photo.shape[1] - side)
        image = enlarge(photo, top, left, side, side)
        if rng.uniform() < 0.5:
            image = image[:, ::-1]
        image = image * rng.uniform(0.8, 1.2, 3)
        # Full contrast would hide some digits from people too
        image = image.mean((0, 1)) + (image - image.mean((0, 1))) * rng.uniform(0.3, 0.8)
    elif kind < 0.8:  # gradient from corner to corner
        image = enlarge(rng.uniform(20, 235, (2, 2, 3)), 0.5, 0.5, 1, 1)
    else:  # soft clouds
        cells = int(rng.integers(4, 16))
        image = rng.uniform(20, 235, 3) + enlarge(rng.uniform(-45, 45, (cells, cells, 1)), 0, 0, cells, cells)
    grain = rng.uniform(-1, 1, image.shape) * max(0, rng.uniform(-16, 8))  # on every third image
    return (image + grain).clip(0, 255)


def draw_ink(rng: np.random.Generator, digit: np.ndarray) -> np.ndarray:
    """Draw one digit's ink at a random size, width and rotation, cropped to what is visible.

    Args:
        rng (np.random.Generator): Source of randomness.
        digit (np.ndarray): Ink of the digit, 0 to 1, (8, 8).

    Returns:
        (np.ndarray): Opacity, 0 or MIN_INK to 1, (H, W); its first and last rows and columns hold ink.
    """
    low, high = DIGIT_HEIGHT
    scale = low * (high / low) ** rng.uniform() / 8  # small sizes as likely as large ones
    stretch = rng.uniform(0.85, 1.2)
    angle = np.deg2rad(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
    sin, cos = np.sin(angle), np.cos(angle)

    # For each output pixel around the digit's centre, find the place in the 8 x 8 original, which stands in an empty
    # margin so that strokes end smoothly
    reach = np.arange(np.ceil(-6 * scale * stretch), np.ceil(6 * scale * stretch) + 1)
    y, x = np.meshgrid(reach, reach, indexing="ij")
    source_y, source_x = (y * cos - x * sin) / scale, (y * sin + x * cos) / (scale * stretch)
    padded = np.pad(digit, 2)
    ink = resample(padded, source_y + 5.5, source_x + 5.5)

    # Enlarged eight pixels are a blur: a steep ramp turns it into pen strokes with soft edges
    ink = ((ink - 0.3) / 0.4).clip(0, 1)
    ink[ink < MIN_INK] = 0
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def choose_colour(rng: np.random.Generator, around: np.ndarray) -> np.ndarray:
    """Choose an ink colour, lighter or darker than its surroundings by MIN_CONTRAST at least.

    Args:
        rng (np.random.Generator): Source of randomness.
        around (np.ndarray): Background under the digit, (H, W, 3).

    Returns:
        (np.ndarray): Colour, float 0 to 255, (3,).
    """
    grey = around.mean()
    ranges = [(0, grey - MIN_CONTRAST), (grey + MIN_CONTRAST, 255)]
    ranges = [(low, high) for low, high in ranges if low <= high]  # at least one: MIN_CONTRAST is below 127
    low, high = ranges[rng.integers(len(ranges))]
    target = rng.uniform(low, high)
    tint = rng.uniform(-1, 1, 3)
    return target + (tint - tint.mean()) * min(40, target / 2, (255 - target) / 2)  # mean as wanted, within 0 to 255


def draw_scene(rng: np.random.Generator, sources: Sources, split: str, queue: list[int]) -> Scene:
    """Draw one image.

    Args:
        rng (np.random.Generator): Source of randomness.
        sources (Sources): Digits and photographs.
        split (str): "train" or "val"; says which part of the photographs may be used.
        queue (list[int]): Digits to draw next, by index; those drawn are taken off its end.

    Returns:
        (Scene): The image with its boxes.
    """
    background = draw_background(rng, sources.photos, split)
    image, ink = background.copy(), np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    taken = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    boxes, samples = [], []
    for _ in range(rng.integers(DIGITS_PER_IMAGE[0], DIGITS_PER_IMAGE[1] + 1)):
        for _ in range(20):  # tries to find a free place; a new size each time
            stroke = draw_ink(rng, sources.digits[queue[-1]])
            height, width = stroke.shape
            top = int(rng.integers(GAP, IMAGE_SIZE - GAP - height + 1))
            left = int(rng.integers(GAP, IMAGE_SIZE - GAP - width + 1))
            if not taken[top - GAP : top + height + GAP, left - GAP : left + width + GAP].any():
                break
        else:
            break  # the image is full
        place = np.s_[top : top + height, left : left + width]
        colour = choose_colour(rng, background[place])
        opacity = stroke[..., None]
        image[place] = image[place] * (1 - opacity) + colour * opacity
        ink[place], taken[place] = stroke, True
        samples.append(queue.pop())
        boxes.append((sources.classes[samples[-1]], left, top, left + width, top + height))
    image, background = (np.rint(x).astype(np.uint8) for x in (image, background))
    return Scene(image, background, ink, np.array(boxes), samples)


def draw_split(split: str, sources: Sources):
    """Draw all images of a split, one at a time.

    Args:
        split (str): "train" or "val".
        sources (Sources): Digits and photographs.

    Yields:
        (Scene): The next image.
    """
    rng = np.random.default_rng([SEED, list(SPLITS).index(split)])
    indices = np.arange(len(sources.digits))
    pool = indices[indices < FIRST_VAL_DIGIT] if split == "train" else indices[indices >= FIRST_VAL_DIGIT]
    queue: list[int] = []
    for _ in range(SPLITS[split]):
        if len(queue) < DIGITS_PER_IMAGE[1]:  # every digit comes once before any comes again, so classes stay balanced
            queue = rng.permutation(pool).tolist() + queue
        yield draw_scene(rng, sources, split, queue)


def label_lines(boxes: np.ndarray) -> str:
    """Write boxes as Ultralytics reads them: class, centre x, centre y, width, height, as fractions of the image."""
    lines = []
    for cls, left, top, right, bottom in boxes.tolist():
        numbers = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        lines.append(" ".join([str(cls), *(f"{n / IMAGE_SIZE:.6f}" for n in numbers)]))
    return "\n".join(lines) + "\n"


def build(root: str | Path) -> Path:
    """Draw the whole set into a new folder, or leave nothing there if interrupted.

    Args:
        root (str | Path): Folder to make. It may exist only if it is empty.

    Returns:
        (Path): The folder.

    Raises:
        FileExistsError: If something else is already there.
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    root = Path(root).absolute()
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise FileExistsError(
            f"'{root}' exists but holds no complete digits set, and is left as it is. "
            "Move it away or delete it, then run the same command again."
        )
    sources = load_sources()
    root.parent.mkdir(parents=True, exist_ok=True)
    # Drawn beside its place and renamed when complete: a run killed half-way leaves no set that looks whole
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as workshop:
        draft = Path(workshop) / root.name
        for split in SPLITS:
            images, labels = draft / "images" / split, draft / "labels" / split
            images.mkdir(parents=True)
            labels.mkdir(parents=True)
            for i, scene in enumerate(draw_split(split, sources)):
                Image.fromarray(scene.image).save(images / f"{i:04d}.png")
                # newline keeps the bytes the same on Windows
                with open(labels / f"{i:04d}.txt", "w", encoding="utf-8", newline="\n") as f:
                    f.write(label_lines(scene.boxes))
        if root.is_dir() and not any(root.iterdir()):
            root.rmdir()  # Windows does not rename onto an empty folder
        try:
            os.rename(draft, root)
        except OSError:
            if not (root / "images" / "val").is_dir():  # else another run finished the same set in the meantime
                raise
    return root


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    print(f"Drawn into {build(sys.argv[1])}")
