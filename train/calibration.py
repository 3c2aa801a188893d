"""Pictures that show the range of what goes through a network that is to compute in 8-bit integers; always the same."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from unmask.errors import UserError
from unmask.models.geometry import CROP_SIZE
from unmask.train import detector, inpainter, segmenter
from unmask.train.config import Split
from unmask.train.data import Draw, FaceCrops, draws
from unmask.train.tracker_data import TrackerData

U8 = npt.NDArray[np.uint8]
Pictures = Iterator[tuple[U8, ...]]

_FACES: Final = 96
_SCENES: Final = 200
_SCENE_SIZE: Final = (640, 384)


def calibration_pictures(network: str, folder: Path) -> Pictures:
    """What a network is shown to calibrate it: an array for each of its inputs, without the batch axis.

    Args:
        network: detector, inpainter or segmenter.
        folder: what `unmask data tracker` wrote for the detector, `unmask data crops` for the others.

    Raises:
        UserError: the network is none of these, or the folder holds nothing of the kind.
    """
    if network not in _MAKERS:
        raise UserError(f"--calibrate: the {network} does not run in 8-bit integers; leave it out")
    return _MAKERS[network](folder)


# The folders are opened before anything is drawn, and so before anything is written.


def _scenes(folder: Path) -> Pictures:
    data = TrackerData.open(folder)
    return ((detector.draw_scene(data, _SCENE_SIZE, np.random.default_rng(seed)).rgb,) for seed in range(_SCENES))


def _hidden_faces(folder: Path) -> Pictures:
    faces = FaceCrops.open(folder)
    batches = (inpainter.make_training_batch(faces, [draw], CROP_SIZE) for draw in _training_faces(faces))
    return ((_bytes(batch.seen)[0], _bytes(batch.mask)[0, ..., 0]) for batch in batches)


def _masked_faces(folder: Path) -> Pictures:
    sources = segmenter.Sources(FaceCrops.open(folder))
    batches = (segmenter.make_batch(sources, [draw], CROP_SIZE) for draw in _training_faces(sources.faces))
    return ((_bytes(batch.rgb)[0],) for batch in batches)


def _training_faces(faces: FaceCrops) -> list[Draw]:
    indices = faces.split(False, Split())
    return draws(np.random.default_rng(0).choice(indices, _FACES), 0)


def _bytes(x: Tensor) -> U8:
    """(N, C, H, W) 0..1 as (N, H, W, C) uint8."""
    return np.asarray((255.0 * x.clamp(0, 1) + 0.5).byte().permute(0, 2, 3, 1).numpy())


_MAKERS: Final[Mapping[str, Callable[[Path], Pictures]]] = {
    "detector": _scenes,
    "inpainter": _hidden_faces,
    "segmenter": _masked_faces,
}
