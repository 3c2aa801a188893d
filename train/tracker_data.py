"""Data for the detector, made once: bare faces with synthetic masks, and pictures with real ones.

What is drawn is kept as arrays, because drawing a mask takes longer than a step of training. Masks are drawn on a face
whose points are known from before, so that hidden points have labels too (MediaPipe's mesh on the bare face).
"""

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from unmask.errors import UserError
from unmask.models.rows import BARE, MASKED, POINTS, WRONGLY, five_points_of, overlap
from unmask.train.config import Recipe, Split
from unmask.train.data import PICTURE_SUFFIXES, FaceCrops, Notice, augment, background, read_or_say, read_rgb
from unmask.train.files import check_whole, reading
from unmask.train.masks import Worn, random_outline
from unmask.train.materials import (
    Masked,
    Template,
    draw_mask,
    grow_beard,
    load_templates,
    put_in_front,
    wear_template,
)
from unmask.train.turning import random_turn, turn_head

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

SCENES: Final = "scenes.json"
"""What is written last."""

FACE_SIZE: Final = 160
"""Width and height of a drawn face in px."""

UNKNOWN: Final = -1
"""Kind of a face that no label names: it is neither to be found nor to be passed over."""

NOTHING: Final = -2
"""Kind of a box in which there is no face, though it may look like one: a hand, an ear, an emblem."""

_LABELS: Final = {"with_mask": MASKED, "with_incorrect_mask": WRONGLY, "without_mask": BARE}
_MORE_LABELS: Final = _LABELS | {"unknown": UNKNOWN, "nothing": NOTHING}

_Label = tuple[int, tuple[float, ...]]
"""Kind, and x0, y0, x1, y1 in px."""

_TURNED_SHARE: Final = 0.4
_MOST_TURNED: Final = 90.0
"""Degrees; heads turned so far are crude, but how a face lies is learnt from them."""
_SCENE_VALIDATION: Final = 3
"""One scene in so many is kept for validation."""

_SAME: Final = 0.3
"""Overlap (IoU) from which on a found face is the one in profile that was marked by hand."""

_PASSED: Final = 0.4
"""Overlap (IoU) from which on a found face and a labelled box are the same."""


def is_validation_scene(name: str) -> bool:
    """Whether a picture with labelled boxes is kept for validation, by the SHA-256 of its file name."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % _SCENE_VALIDATION == 0


def check_recipe(recipe: Recipe, network: str, drawn: str) -> None:
    """Refuse what a run on these data would leave out in silence.

    Args:
        recipe: what is to be run.
        network: its name, for the message.
        drawn: what augmentation of pictures alone would leave in its old place.

    Raises:
        UserError: there is such a key, or `tracker` is missing.
    """
    if not recipe.tracker:
        raise UserError(f"tracker: the {network} needs a folder written by `unmask data tracker`")
    if recipe.losses or any(phase.losses for phase in recipe.phases):
        raise UserError(f"losses: the {network} has its own, which cannot be chosen; leave the key out")
    if recipe.augmentation:
        raise UserError(f"augmentation: it would not move the {drawn} of faces; the {network} draws its own")
    if recipe.split != Split():
        raise UserError(f"split: `unmask data tracker` has split the faces of the {network} by hash; leave the key out")


def box_of(landmarks: F32) -> F32:
    """(4,) float32 x0, y0, x1, y1 around the points."""
    return np.concatenate([landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class DrawnFace:
    """A face as it is drawn for training.

    Attributes:
        rgb: (S, S, 3) uint8, S = `FACE_SIZE`.
        inside: (S, S) uint8, 0 beyond the picture's border.
        points: (468, 3) float32 px, hidden ones too.
        kind: index into `KINDS`.
    """

    rgb: U8
    inside: U8
    points: F32
    kind: int


def draw_face(faces: FaceCrops, index: int, templates: Sequence[Template], rng: np.random.Generator) -> DrawnFace:
    """A bare face with a mask worn in some way, or none, perhaps turned, perhaps with something in front of it."""
    face = augment(faces, index, FACE_SIZE, rng, 0.0)
    rgb = grow_beard(face.rgb, face.points, rng) if rng.random() < 0.15 else face.rgb
    masked, kind = Masked(rgb, np.zeros(rgb.shape[:2], np.float32)), BARE
    if rng.random() < 0.72:
        worn: Worn = ("well", "under-nose", "under-mouth")[int(rng.choice(3, p=[0.8, 0.12, 0.08]))]
        kind = MASKED if worn == "well" else WRONGLY
        if templates and kind == MASKED and rng.random() < 0.45:
            masked = wear_template(rgb, face.points, templates[int(rng.integers(len(templates)))], rng)
        else:
            masked = draw_mask(rgb, face.points, rng, outline=random_outline(rng, worn))
    points, inside = face.points, face.inside
    if rng.random() < _TURNED_SHARE:
        behind = background(faces, FACE_SIZE, rng)
        masked, points = turn_head(masked, points, behind, random_turn(rng, _MOST_TURNED))
        inside = np.ones_like(inside)
    if rng.random() < 0.2:
        masked = put_in_front(masked, rgb, points, rng)
    picture = np.asarray(np.rint(np.clip(masked.rgb, 0, 1) * 255), np.uint8)
    return DrawnFace(picture, (inside * 255).astype(np.uint8), points.astype(np.float32), kind)


def prepare_faces(crops: Path, textures: Path, out: Path, variants: int, progress: Callable[[int, int], None]) -> int:
    """Draw each training face several times.

    Writes `faces.npy` (N, S, S, 3) uint8, `inside.npy` (N, S, S) uint8, `points.npy` (N, 468, 3) float32 px and
    `kinds.npy` (N,) uint8.

    Args:
        crops: folder written by `unmask data crops`; its validation split is left out.
        textures: folder of mask pictures.
        out: where the files are written, from the beginning on; `files.whole_files` has them appear at the end.
        variants: how often each face is drawn.
        progress: is told how many of how many are done.

    Returns:
        N.
    """
    faces, templates = FaceCrops.open(crops), load_templates(textures)
    indices = np.random.default_rng(0).permutation(np.tile(faces.split(False), variants))
    count, side = len(indices), FACE_SIZE
    rgb = np.lib.format.open_memmap(out / "faces.npy", "w+", np.uint8, (count, side, side, 3))
    inside = np.lib.format.open_memmap(out / "inside.npy", "w+", np.uint8, (count, side, side))
    points = np.zeros((count, 468, 3), np.float32)
    kinds = np.zeros(count, np.uint8)
    for position, index in enumerate(indices):
        progress(position, count)
        drawn = draw_face(faces, int(index), templates, np.random.default_rng(position))
        rgb[position], inside[position] = drawn.rgb, drawn.inside
        points[position], kinds[position] = drawn.points, drawn.kind
    np.save(out / "points.npy", points)
    np.save(out / "kinds.npy", kinds)
    return count


def read_boxes(folder: Path) -> dict[str, list[_Label]]:
    """The boxes of a folder of scenes: by file name, kind and x0, y0, x1, y1 in px.

    Raises:
        UserError: there is no `boxes.csv`, or a line of it is no box.
    """
    return _labels_in(folder / "boxes.csv", _LABELS)


def read_labels(scenes: Path, more: Path | None) -> tuple[dict[str, list[_Label]], dict[str, list[_Label]]]:
    """As `read_boxes`, of a folder of scenes, and of a file with what its boxes leave out, none where it is None.

    Raises:
        UserError: one of them is missing or broken.
    """
    return read_boxes(scenes), _labels_in(more, _MORE_LABELS) if more else {}


def _labels_in(path: Path, kinds: Mapping[str, int]) -> dict[str, list[_Label]]:
    boxes: dict[str, list[_Label]] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                box = tuple(float(row[side]) for side in ("x0", "y0", "x1", "y1"))
                boxes.setdefault(row["file"], []).append((kinds[row["label"]], box))
    except OSError as error:
        raise UserError(f"'{path.parent}' has no {path.name} with the columns file,label,x0,y0,x1,y1") from error
    except (KeyError, TypeError, ValueError) as error:
        wanted = f"needs the columns file,label,x0,y0,x1,y1, and labels of {', '.join(kinds)}"
        raise UserError(f"'{path}' {wanted}: {error} is none") from error
    return boxes


def prepare_scenes(
    scenes: Path,
    stills: Sequence[Path],
    locate: Callable[[U8], Sequence[F32]],
    out: Path,
    progress: Callable[[int, int], None],
    more: Path | None = None,
    profiles: Mapping[str, Sequence[F32]] = MappingProxyType({}),
    notice: Notice = print,
) -> int:
    """List the pictures with real masked faces that are trained on: `scenes.json` and `scene_points.npy`.

    Labelled scenes have their boxes; points are added where a found face fits a box. Found faces that fit none are
    listed as `UNKNOWN`: labels leave out many faces in the background. In stills, whose folder says how
    the mask is worn (`incorrect`: wrongly), the found faces are the boxes.

    Args:
        scenes: pictures with `boxes.csv`; the validation third is left out.
        stills: folders of portraits of masked people, without labels.
        locate: gives the (468, 3) landmarks of the faces of an RGB picture.
        out: where the files are written.
        progress: is told how many of how many pictures are done.
        more: a file like `boxes.csv` with what that leaves out, and what is found wrongly in stills (named with their
            folder, as in `cloth/1.jpg`): faces, boxes that are `unknown`, and `nothing` where something was taken for a
            face and is none.
        profiles: (468, 3) landmarks of faces in profile, by the file names of `more`; they take the place of those that
            are found there.
        notice: takes a line for each picture that cannot be read, which is left out.

    Returns:
        How many boxes are listed.

    Raises:
        UserError: a file of labels is missing or broken, or none of the pictures can be read.
    """
    boxes, others = read_labels(scenes, more)
    todo: list[tuple[Path, list[_Label] | None]] = [
        (scenes / name, [*found, *others.get(name, ())])
        for name, found in sorted(boxes.items())
        if not is_validation_scene(name)
    ]
    todo += [(p, None) for f in stills for p in sorted(f.rglob("*")) if p.suffix.lower() in PICTURE_SUFFIXES]
    listed: list[dict[str, Any]] = []
    points: list[F32] = []
    unread = 0
    for done, (path, labelled) in enumerate(todo):
        progress(done, len(todo))
        name = path.name if labelled is not None else f"{path.parent.name}/{path.name}"
        if (rgb := read_or_say(path, notice)) is None:
            unread += 1
            continue
        aside = profiles.get(name, ())
        seen = [*_elsewhere(locate(rgb), aside), *aside]
        if labelled is None:
            kind = WRONGLY if path.parent.name == "incorrect" else MASKED
            labelled = others.get(name, [])
            labelled = [*labelled, *((kind, box) for box in _unlabelled(seen, labelled))]
        if faces := _listed(labelled, seen, points, len(aside)):
            listed.append({"file": str(path.resolve()), "faces": faces})
    if todo and unread == len(todo):
        raise UserError(f"none of the {unread} pictures that are listed can be read; they belong beside boxes.csv")
    np.save(out / "scene_points.npy", np.array(points, np.float32).reshape(-1, 468, 3))
    (out / SCENES).write_text(json.dumps(listed))
    return sum(len(entry["faces"]) for entry in listed)


def _elsewhere(seen: Sequence[F32], aside: Sequence[F32]) -> list[F32]:
    """The landmarks (468, 3) that are not of one of the faces `aside`."""
    known = np.array([box_of(points) for points in aside], np.float32).reshape(-1, 4)
    return [p for p in seen if overlap(known, box_of(p)[None]).max(initial=0) <= _SAME]


def _listed(labelled: Sequence[_Label], seen: Sequence[F32], points: list[F32], aside: int) -> list[dict[str, Any]]:
    """The boxes of a picture as `scenes.json` has them; what was seen where a face is labelled is added to `points`.
    The last `aside` of what was seen is in profile."""
    faces = []
    for kind, box in labelled:
        fits = [overlap(np.array([box], np.float32), box_of(p)[None])[0, 0] for p in seen]
        row, profile = -1, False
        if kind >= 0 and fits and max(fits) > _PASSED:
            row, best = len(points), int(np.argmax(fits))
            points.append(seen[best])
            profile = best >= len(seen) - aside
        faces.append({"kind": kind, "box": box, "points": row, "profile": profile})
    others = _unlabelled(seen, labelled)
    return faces + [{"kind": UNKNOWN, "box": box, "points": -1, "profile": False} for box in others]


def _unlabelled(seen: Sequence[F32], labelled: Sequence[_Label]) -> list[tuple[float, ...]]:
    """Boxes of the found faces that fit no label."""
    boxes = np.array([box for _, box in labelled], np.float32).reshape(-1, 4)
    found = [box_of(points) for points in seen]
    return [tuple(float(v) for v in b) for b in found if overlap(boxes, b[None]).max(initial=0) <= _PASSED]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture with its faces.

    Attributes:
        rgb: (H, W, 3) uint8.
        boxes: (N, 4) float32 px.
        kinds: (N,) int64, indices into `KINDS`, or `UNKNOWN`.
        points: (N, 5, 2) float32 px, NaN where they are not known.
        meshes: (M, 468, 3) float32 px, of the faces whose points are known.
        profile: (M,) bool, which of these are in profile, and marked by hand.
        nothing: (K, 4) float32 px, what looks like a face and is none.
    """

    rgb: U8
    boxes: F32
    kinds: npt.NDArray[np.int64]
    points: F32
    meshes: F32
    profile: npt.NDArray[np.bool_]
    nothing: F32


@dataclass(frozen=True, slots=True)
class TrackerData:
    """What `unmask data tracker` wrote.

    Attributes:
        faces: (N, S, S, 3) uint8, drawn faces.
        inside: (N, S, S) uint8, 0 beyond the picture's border.
        points: (N, 468, 3) float32 px.
        kinds: (N,) uint8, indices into `KINDS`.
        scenes: real ones.
        scene_of_face: (M,) int64, the scene of each of their faces.
        profiles: scene and place among its meshes of each face in profile.
    """

    faces: U8
    inside: U8
    points: F32
    kinds: U8
    scenes: tuple[Scene, ...]
    scene_of_face: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    profiles: tuple[tuple[int, int], ...] = ()

    @classmethod
    def open(cls, folder: Path) -> "TrackerData":
        """Raises UserError where the folder was not written by `unmask data tracker`, or not to the end."""
        with reading(folder, "data for the tracker", "see unmask data tracker --help"):
            listed = json.loads((folder / SCENES).read_text())
            mesh = np.load(folder / "scene_points.npy")
            faces, inside = (np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("faces", "inside"))
            points, kinds = np.load(folder / "points.npy"), np.load(folder / "kinds.npy")
            check_whole(faces, inside, points, kinds, drawn=inside)
            scenes = tuple(_scene(entry, mesh) for entry in listed)
        scene_of_face = np.repeat(np.arange(len(scenes)), [len(s.boxes) + len(s.nothing) for s in scenes])
        profiles = tuple((i, int(j)) for i, scene in enumerate(scenes) for j in np.nonzero(scene.profile)[0])
        return cls(faces, inside, points, kinds, scenes, scene_of_face, profiles)


def _scene(entry: dict[str, Any], mesh: F32) -> Scene:
    faces = [f for f in entry["faces"] if f["kind"] != NOTHING]
    nothing = np.array([f["box"] for f in entry["faces"] if f["kind"] == NOTHING], np.float32).reshape(-1, 4)
    unknown = np.full((POINTS, 2), np.nan, np.float32)
    points = np.array([five_points_of(mesh[f["points"]]) if f["points"] >= 0 else unknown for f in faces], np.float32)
    kinds = np.array([f["kind"] for f in faces], np.int64)
    boxes = np.array([f["box"] for f in faces], np.float32).reshape(-1, 4)
    known_faces = [f for f in faces if f["points"] >= 0]
    meshes = mesh[[f["points"] for f in known_faces]]
    profile = np.array([f.get("profile", False) for f in known_faces], np.bool_)
    rgb = read_rgb(Path(entry["file"]))
    return Scene(rgb, boxes, kinds, points.reshape(-1, POINTS, 2), meshes, profile, nothing)
