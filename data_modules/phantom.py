"""Synthetic images of the eight modalities, with findings drawn into them, for the demo and the tests.

Each modality has a look of its own (a body ring above its table, a fan of speckle, vessels on a fundus ...) and four
findings that change the picture in a way a person sees at once. The drawings teach nothing about medicine: they are a
visual question answering task whose images can be made anywhere, from a seed, in a millisecond each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator

from medgrpo.types import LETTERS, MODALITIES, Record

SIZE = 84
"""Width and height of every image in pixels: 6 x 6 patches, 3 x 3 image tokens of Qwen2-VL."""

FINDINGS = {
    "ct": ("normal", "cyst", "calcification", "effusion"),
    "mri": ("normal", "tumor", "infarct", "sclerosis"),
    "xray": ("normal", "pneumonia", "cardiomegaly", "pneumothorax"),
    "ultrasound": ("normal", "cyst", "gallstone", "hemangioma"),
    "fundus": ("normal", "hemorrhage", "drusen", "glaucoma"),
    "dermoscopy": ("nevus", "melanoma", "keratosis", "angioma"),
    "microscopy": ("normal", "carcinoma", "inflammation", "necrosis"),
    "oct": ("normal", "edema", "hole", "detachment"),
}
"""Findings of each modality. The demo's base model knows the name of the first and doubts those of the others."""

SIGNS = {
    "ct": ("clear body", "dark disc", "white dots", "dark layer"),
    "mri": ("even brain", "bright ball", "dark wedge", "bright patches"),
    "xray": ("clear lungs", "white cloud", "wide heart", "black lung"),
    "ultrasound": ("even speckle", "black ball", "bright stone", "bright cloud"),
    "fundus": ("plain disc", "red blots", "yellow dots", "pale cup"),
    "dermoscopy": ("brown spot", "black blue patch", "dotted yellow", "red lumps"),
    "microscopy": ("few nuclei", "large nuclei", "many nuclei", "white hole"),
    "oct": ("smooth dip", "dark bubbles", "open gap", "lifted layer"),
}
"""What each finding looks like, in the order of ``FINDINGS``."""

NAMES = {
    "ct": "CT",
    "mri": "MRI",
    "xray": "X-ray",
    "ultrasound": "ultrasound",
    "fundus": "fundus photography",
    "dermoscopy": "dermoscopy",
    "microscopy": "microscopy",
    "oct": "OCT",
}
"""What a question calls each modality."""

STEMS = {
    "Disease Diagnosis": (
        "What is the diagnosis for this image?",
        "Which finding does this image show?",
        "What can be seen in this picture?",
    ),
    "Modality Recognition": (
        "What imaging technique was used for this picture?",
        "Which modality does this image come from?",
    ),
}
"""Wordings of each task. None names the modality, so a question without its image says nothing about the answer."""

DIAGNOSIS_SHARE = 0.8
"""Share of questions that ask for the diagnosis; the rest ask for the modality."""

Y, X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def ellipse(cy: float, cx: float, ry: float, rx: float, soft: float = 1.0) -> np.ndarray:
    """[SIZE, SIZE] coverage of an ellipse in 0..1, its edge ``soft`` pixels wide."""
    radius = np.sqrt(((Y - cy) / ry) ** 2 + ((X - cx) / rx) ** 2)
    return np.clip((1 - radius) * min(ry, rx) / soft + 0.5, 0, 1)


def paint(image: np.ndarray, mask: np.ndarray, value: float | tuple[float, float, float]) -> None:
    """Blend ``value`` into ``image`` [SIZE, SIZE, 3] in place where ``mask`` [SIZE, SIZE] is above zero."""
    image += mask[..., None] * (np.asarray(value, np.float32) - image)


def blobs(rng: Generator, number: int, area: np.ndarray, radius: tuple[float, float]) -> np.ndarray:
    """[SIZE, SIZE] coverage of ``number`` discs with centres drawn where ``area`` is set and radii in ``radius``."""
    places = np.argwhere(area > 0.5)
    mask = np.zeros((SIZE, SIZE), np.float32)
    for cy, cx in places[rng.integers(len(places), size=number)]:
        mask = np.maximum(mask, ellipse(cy, cx, *rng.uniform(*radius, size=2)))
    return mask


def smooth_noise(rng: Generator, cells: int) -> np.ndarray:
    """[SIZE, SIZE] noise of about unit size that varies over SIZE / cells pixels."""
    grid = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    at = np.linspace(0, cells, SIZE, endpoint=False)
    low, share = at.astype(int), (at % 1).astype(np.float32)
    rows = grid[low] * (1 - share[:, None]) + grid[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def jitter(rng: Generator, centre: float, spread: float) -> float:
    """A number within ``spread`` of ``centre``."""
    return centre + rng.uniform(-spread, spread)


def draw_ct(rng: Generator, finding: str) -> np.ndarray:
    """Axial body: bright ring of skin and fat, spine, two kidneys, and the table's arc below."""
    image = np.full((SIZE, SIZE, 3), 0.03, np.float32)
    cy, cx, ry, rx = jitter(rng, 38, 3), jitter(rng, 42, 3), jitter(rng, 28, 2), jitter(rng, 35, 2)
    table = np.abs(Y - (cy + ry + 6 - ((X - cx) / 30) ** 2 * 5)) < 1.2
    paint(image, table * (np.abs(X - cx) < 34), 0.6)
    paint(image, ellipse(cy, cx, ry, rx), 0.75)
    inside = ellipse(cy, cx, ry - 3, rx - 3)
    paint(image, inside, 0.45)
    for side in (-1, 1):
        paint(image, ellipse(cy + 6, cx + side * 17, 6, 4.5), 0.55)
    organs = ellipse(cy - 6, cx, ry - 15, rx - 12)
    if finding == "cyst":
        paint(image, blobs(rng, 1, organs, (8, 10)), 0.12)
    elif finding == "calcification":
        paint(image, blobs(rng, 5, organs, (2, 3)), 1.0)
    elif finding == "effusion":
        level = cy + ry - jitter(rng, 17, 2)
        paint(image, inside * (level < Y), 0.25)
    paint(image, ellipse(cy + ry - 9, cx, 5, 5.5), 0.95)
    return image


def draw_mri(rng: Generator, finding: str) -> np.ndarray:
    """Axial brain: thin scalp ring, bright rim of cortex, two dark ventricles."""
    image = np.full((SIZE, SIZE, 3), 0.02, np.float32)
    cy, cx, ry, rx = jitter(rng, 42, 3), jitter(rng, 42, 3), jitter(rng, 37, 2), jitter(rng, 30, 2)
    paint(image, ellipse(cy, cx, ry, rx), 0.8)
    paint(image, ellipse(cy, cx, ry - 2, rx - 2), 0.05)
    paint(image, ellipse(cy, cx, ry - 5, rx - 5), 0.5)
    folds = 0.5 + 0.15 * np.sin(np.arctan2(Y - cy, X - cx) * 26)
    cortex = ellipse(cy, cx, ry - 5, rx - 5) - ellipse(cy, cx, ry - 10, rx - 10)
    paint(image, np.clip(cortex, 0, 1), 0.6)
    image *= 1 - np.clip(cortex, 0, 1)[..., None] * (0.65 - folds[..., None])
    white = ellipse(cy, cx, ry - 13, rx - 13)
    for side in (-1, 1):
        paint(image, ellipse(cy, cx + side * 4.5, 9, 2.8), 0.12)
    if finding == "tumor":
        py, px = np.argwhere(white > 0.5)[rng.integers((white > 0.5).sum())]
        paint(image, ellipse(py, px, 11, 11, 3), 0.3)
        paint(image, ellipse(py, px, 7, 7), 1.0)
    elif finding == "infarct":
        angle = rng.uniform(-0.8, 0.8) + rng.choice([0, np.pi])
        turn = np.abs(np.angle(np.exp(1j * (np.arctan2(Y - cy, X - cx) - angle))))
        far = 1 - ellipse(cy, cx, 13, 9)
        paint(image, (turn < 0.5) * far * ellipse(cy, cx, ry - 5, rx - 5), 0.15)
    elif finding == "sclerosis":
        paint(image, blobs(rng, 8, white, (2, 3)), 0.98)
    return image


def draw_xray(rng: Generator, finding: str) -> np.ndarray:
    """Frontal chest: two dark lungs crossed by ribs, mediastinum and heart between them."""
    image = np.full((SIZE, SIZE, 3), 0.72, np.float32)
    cy, cx = jitter(rng, 42, 3), jitter(rng, 42, 3)
    lungs = [ellipse(cy, cx + side * 19, jitter(rng, 32, 2), 15, 2) for side in (-1, 1)]
    side = int(rng.integers(2))
    for lung in lungs:
        paint(image, lung, 0.25)
    phase = rng.uniform(0, 9)
    ribs = np.sin((Y + 0.012 * (X - cx) ** 2 + phase) * 2 * np.pi / 9) > 0.55
    shown = np.maximum(lungs[0], lungs[1])
    if finding == "pneumothorax":
        paint(image, lungs[side], 0.02)
        paint(image, ellipse(cy + 10, cx + (12 if side else -12), 14, 7), 0.6)
        shown = lungs[1 - side]
    paint(image, ribs * shown * 0.6, 0.6)
    paint(image, (np.abs(X - cx) < 5).astype(np.float32), 0.8)
    large = finding == "cardiomegaly"
    paint(image, ellipse(cy + 15, cx + 4, 17 if large else 11, 25 if large else 11, 2), 0.9)
    if finding == "pneumonia":
        fluff = np.clip(0.75 + 0.35 * smooth_noise(rng, 14), 0, 1)
        paint(image, fluff * ellipse(cy + jitter(rng, -8, 10), cx + (20 if side else -20), 12, 11, 5), 0.92)
    return image


def draw_ultrasound(rng: Generator, finding: str) -> np.ndarray:
    """Fan of speckle below a probe; a stone throws a shadow, a cyst a bright tail."""
    image = np.full((SIZE, SIZE, 3), 0.0, np.float32)
    cx, top = jitter(rng, 42, 3), jitter(rng, -12, 3)
    angle, depth = np.arctan2(X - cx, Y - top), np.hypot(X - cx, Y - top)
    fan = ((np.abs(angle) < 0.62) & (depth > 20) & (depth < 90)).astype(np.float32)
    texture = np.full((SIZE, SIZE), 0.42, np.float32)
    at, far = rng.uniform(-0.3, 0.3), rng.uniform(42, 60)
    py, px = top + far * np.cos(at), cx + far * np.sin(at)
    behind = ((np.abs(angle - at) < 7 / far) & (depth > far)).astype(np.float32)
    if finding == "cyst":
        texture += 0.3 * behind
        texture *= 1 - ellipse(py, px, 10, 11)
    elif finding == "gallstone":
        texture *= 1 - 0.95 * behind
        texture += 1.2 * ellipse(py, px, 4.5, 7)
    elif finding == "hemangioma":
        texture += 0.6 * ellipse(py, px, 10, 11, 2)
    speckle = rng.rayleigh(0.8, (SIZE // 2, SIZE // 2)).repeat(2, 0).repeat(2, 1)
    paint(image, fan, 1.0)
    return image * (texture * (0.3 + 0.7 * speckle))[..., None].astype(np.float32)


def draw_fundus(rng: Generator, finding: str) -> np.ndarray:
    """Orange retina: bright optic disc with vessels arching from it, darker macula."""
    image = np.full((SIZE, SIZE, 3), 0.01, np.float32)
    side = rng.choice([-1, 1])
    cy, cx = jitter(rng, 42, 2), jitter(rng, 42, 2)
    retina = ellipse(cy, cx, 38, 38)
    paint(image, retina, (0.78, 0.36, 0.12))
    dy, dx = jitter(rng, cy, 3), cx + side * 18
    along = (dx - X) * side
    for bend in (-1.4, -0.6, 0.6, 1.4):
        course = dy + bend * 6.5 * np.sqrt(np.clip(along, 0, None)) * jitter(rng, 1, 0.15)
        paint(image, (np.abs(Y - course) < 1.1) * (along > 0) * retina, (0.45, 0.08, 0.05))
    macula = ellipse(dy, cx - side * 12, 9, 9, 6)
    paint(image, 0.5 * macula, (0.45, 0.16, 0.05))
    field = ellipse(cy, cx - side * 8, 24, 20)
    if finding == "hemorrhage":
        paint(image, blobs(rng, 9, field, (2.5, 4.5)), (0.3, 0.0, 0.02))
    elif finding == "drusen":
        paint(image, blobs(rng, 14, field, (1.5, 3)), (1.0, 0.9, 0.45))
    paint(image, ellipse(dy, dx, 7.5, 6.5), (0.95, 0.75, 0.4))
    if finding == "glaucoma":
        paint(image, ellipse(dy, dx, 13, 11.5), (0.95, 0.8, 0.5))
        paint(image, ellipse(dy, dx, 10, 9), (1.0, 1.0, 0.95))
    return image


def draw_dermoscopy(rng: Generator, finding: str) -> np.ndarray:
    """Lesion on skin: nevus small and even, melanoma large and ragged, keratosis pale and dotted, angioma red."""
    image = np.full((SIZE, SIZE, 3), (0.93, 0.72, 0.62), np.float32)
    cy, cx = jitter(rng, 42, 8), jitter(rng, 42, 8)
    angle, radius = np.arctan2(Y - cy, X - cx), np.hypot(Y - cy, X - cx)

    def lobed(size: float, depth: float) -> np.ndarray:
        edge = size * (1 + depth * sum(np.sin(k * angle + rng.uniform(0, 6.3)) / k for k in (2, 3, 5)))
        return np.clip((edge - radius) / 1.5 + 0.5, 0, 1)

    if finding == "nevus":
        paint(image, lobed(jitter(rng, 13, 2), 0.05), (0.5, 0.3, 0.18))
    elif finding == "melanoma":
        lesion = lobed(jitter(rng, 24, 2), 0.35)
        paint(image, lesion, (0.22, 0.12, 0.1))
        paint(image, lesion * np.clip(smooth_noise(rng, 7), 0, 1), (0.3, 0.32, 0.45))
    elif finding == "keratosis":
        lesion = lobed(jitter(rng, 21, 2), 0.12)
        paint(image, lesion, (0.75, 0.55, 0.3))
        paint(image, blobs(rng, 14, lesion, (1.5, 2.5)), (1.0, 0.97, 0.85))
    else:
        lesion = lobed(jitter(rng, 17, 2), 0.1)
        paint(image, lesion, (0.75, 0.1, 0.15))
        paint(image, blobs(rng, 7, lesion, (3, 4)), (0.5, 0.0, 0.08))
    return image


def draw_microscopy(rng: Generator, finding: str) -> np.ndarray:
    """Stained tissue: violet nuclei on pink; crowded and large, small and many, or gone."""
    image = np.full((SIZE, SIZE, 3), (0.93, 0.68, 0.82), np.float32)
    everywhere = np.ones((SIZE, SIZE), np.float32)
    fibres = 0.5 + 0.5 * np.sin(X * rng.uniform(0.2, 0.4) + Y * rng.uniform(0.2, 0.4) + smooth_noise(rng, 6))
    paint(image, 0.4 * fibres, (0.85, 0.5, 0.7))
    number, size = {"carcinoma": (34, (5, 7.5)), "inflammation": (90, (1.6, 2.2))}.get(finding, (22, (3, 4)))
    nuclei = blobs(rng, number, everywhere, size)
    paint(image, nuclei, (0.25, 0.08, 0.4) if finding == "carcinoma" else (0.42, 0.22, 0.6))
    if finding == "necrosis":
        paint(image, ellipse(jitter(rng, 42, 14), jitter(rng, 42, 14), 24, 26, 5), (0.97, 0.9, 0.92))
    return image


def draw_oct(rng: Generator, finding: str) -> np.ndarray:
    """Layers of the retina in grey; cysts within, a gap, or fluid that lifts them."""
    slope, bow = rng.uniform(-0.12, 0.12), rng.uniform(-6, 2)
    across = (X - 42) / 42
    base = jitter(rng, 56, 4) + slope * (X - 42) + bow * across**2
    pit = jitter(rng, 42, 6)
    thick = 24 - 6 * np.exp(-(((X - pit) / 8) ** 2))
    lift = np.zeros_like(X)
    if finding == "edema":
        thick = 28 + 7 * np.exp(-(((X - pit) / 16) ** 2))
    elif finding == "detachment":
        lift = jitter(rng, 15, 2) * np.exp(-(((X - pit) / 15) ** 2))
    share = (base - lift - Y) / thick  # 0 at the retina's outer face, 1 at its inner face
    faces = (-0.02, 0.02, 0.12, 0.2, 0.4, 0.5, 0.7, 0.8, 1.0, 1.04)
    greys = (0, 0.9, 0.9, 0.3, 0.3, 0.6, 0.35, 0.6, 0.85, 0)
    bands = np.interp(share, faces, greys)
    if finding == "edema":
        retina = ((share > 0.25) & (share < 0.8) & (np.abs(X - pit) < 20)).astype(np.float32)
        bands = bands * (1 - blobs(rng, 5, retina, (4, 6)))
    elif finding == "hole":
        bands = bands * (np.abs(X - pit) > np.clip(6 + 4 * share, 5, 12))
    bed = np.interp(Y - base, (0, 1, 5, 24), (0, 0.95, 0.55, 0.1))
    image = np.maximum(bands, bed).astype(np.float32)
    return np.repeat(image[..., None], 3, axis=2) + 0.03


DRAW = {
    "ct": draw_ct,
    "mri": draw_mri,
    "xray": draw_xray,
    "ultrasound": draw_ultrasound,
    "fundus": draw_fundus,
    "dermoscopy": draw_dermoscopy,
    "microscopy": draw_microscopy,
    "oct": draw_oct,
}


def draw(modality: str, finding: str, rng: Generator) -> np.ndarray:
    """One image, [SIZE, SIZE, 3] uint8: the drawing under a random brightness, contrast, shade and noise."""
    image = DRAW[modality](rng, finding)
    image = image * rng.uniform(0.8, 1.1) + rng.uniform(-0.03, 0.05)
    image *= 1 + 0.08 * smooth_noise(rng, 2)[..., None]
    image += rng.normal(0, 0.03, image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def phantom(seed: int, number: int, name: str = "phantom") -> Iterator[tuple[Record, np.ndarray]]:
    """``number`` questions with an image each, [SIZE, SIZE, 3] uint8; the same for the same arguments.

    Options are the answer and one to three others of the same kind in random order: the same modality's other findings,
    or other modalities. Nothing but the image tells them apart.

    Args:
        seed: different seeds give different images.
        number: of questions.
        name: prefix of ids and image paths.
    """
    rng = np.random.default_rng(seed)
    for index in range(number):
        modality = str(rng.choice(MODALITIES))
        finding = str(rng.choice(FINDINGS[modality]))
        task = "Disease Diagnosis" if rng.random() < DIAGNOSIS_SHARE else "Modality Recognition"
        kind, truth = NAMES.values(), NAMES[modality]
        if task == "Disease Diagnosis":
            kind, truth = FINDINGS[modality], finding
        others = rng.permutation([option for option in kind if option != truth])
        options = [str(option) for option in rng.permutation([truth, *others[: rng.integers(1, 4)]])]
        question = str(rng.choice(STEMS[task]))
        listed = ", ".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
        record = Record(
            id=f"{name}-{index}",
            problem=f"{question} {listed}",
            question=question,
            options=tuple(options),
            answer=LETTERS[options.index(truth)],
            images=(f"{name}/{index}.png",),
            modality=modality,
            task=task,
            dataset="phantom",
        )
        yield record, draw(modality, finding, rng)
