"""How steady the painted face is over time, on real videos of bare faces that wear a synthetic mask.

    python benchmarks/steadiness.py VIDEO... [--frames 100] [--instruments DIR]

Protocol: a drawn surgical mask follows the landmarks of the largest face through each video; the masked frames go
through the pipeline's stages twice: as they are ("steadied"), and with every frame painted anew and nothing smoothed
over time ("frame by frame"). Optical flow (DIS, medium) between the true frames carries each result into the next; the
warping error is the mean squared difference (0..1 colours) where the mask is and the flow agrees forwards and
backwards. Sharpness is the variance of the Laplacian in the mask. With instruments (see unmask.train.instruments) the
LPIPS distance between neighbouring frames is set against that of the true video.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.mediapipe import FaceDetector, FaceMesh
from unmask.stream.frame import Frame, Layout
from unmask.stream.stage import Context, Stage
from unmask.stream.stages.inpaint import Inpaint
from unmask.stream.stages.segment import Segment
from unmask.stream.stages.smooth import Smooth
from unmask.stream.stages.track import Track
from unmask.train.data import largest_face
from unmask.train.evaluate import sharpness
from unmask.train.instruments import Instruments
from unmask.train.masks import Outline
from unmask.train.materials import draw_mask

U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

AGREES_PX: Final = 1.0


@dataclass(frozen=True)
class Moment:
    """One frame: the truth and the masked picture, (H, W, 3) uint8 RGB, and where the mask is, (H, W) bool."""

    truth: U8
    masked: U8
    mask: Bools


def moments(video: Path, count: int) -> Iterator[Moment]:
    """The first frames of a video with a mask that follows the largest face; those without a face are left out."""
    detector, mesh = FaceDetector(), FaceMesh()
    with av.open(str(video)) as container:
        for decoded in itertools.islice(container.decode(video=0), count):
            truth = np.asarray(decoded.to_ndarray(format="rgb24"), np.uint8)
            landmarks = largest_face(truth, detector, mesh)
            if landmarks is None:
                continue
            rgb = truth.astype(np.float32) / np.float32(255)
            worn = draw_mask(rgb, landmarks, np.random.default_rng(4), "surgical", Outline())
            yield Moment(truth, np.rint(worn.rgb * 255).astype(np.uint8), worn.coverage > 0.5)


def unmask(pictures: list[U8], track: Track, smooth: Smooth, *, memory: bool = True, later: str = "") -> list[U8]:
    """Send pictures through the stages as one stream of 25 frames per second; `memory` and `later` as of `Inpaint`."""
    return through(pictures, (track, Segment(), Inpaint(memory=memory, later=later), smooth))


def through(pictures: list[U8], stages: tuple[Stage, ...]) -> list[U8]:
    """Send pictures through stages as one stream of 25 frames per second."""
    height, width = pictures[0].shape[:2]
    layout = Layout(width, height, "rgb24", full_range=True)
    context = Context(layout, 1)
    for stage in stages:
        stage.open(context)
    results = []
    for index, picture in enumerate(pictures):
        frame = Frame(index, index, Fraction(1, 25), layout, np.zeros(layout.slot_bytes(1), np.uint8), 0)
        frame.planes[0][...] = picture
        for stage in stages:
            list(stage.process(frame))
        results.append(np.asarray(frame.planes[0]).copy())
    for stage in stages:
        list(stage.flush())
        stage.close()
    return results


def flows(truth: list[U8]) -> list[tuple[npt.NDArray[np.float32], Bools]]:
    """For each frame but the first: where its pixels were in the frame before (H, W, 2) px, and where that is sure."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in truth]
    height, width = grey[0].shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    result = []
    for before, now in itertools.pairwise(grey):
        back, forth = dis.calc(now, before, None), dis.calc(before, now, None)
        at = np.stack([x, y], axis=2) + back
        returned = back + cv2.remap(forth, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
        result.append((at.astype(np.float32), np.asarray(np.linalg.norm(returned, axis=2) < AGREES_PX)))
    return result


def warping_error(results: list[U8], masks: list[Bools], flow: list[tuple[npt.NDArray[np.float32], Bools]]) -> float:
    """Mean squared difference of each frame to the one before, carried along by the flow; colours 0..1."""
    errors = []
    for number, (at, sure) in enumerate(flow, start=1):
        carried = cv2.remap(results[number - 1], at[..., 0], at[..., 1], cv2.INTER_LINEAR).astype(np.float64)
        where = masks[number] & sure
        if where.any():
            errors.append(float((((results[number] - carried) / 255) ** 2)[where].mean()))
    return float(np.mean(errors))


def around(mask: Bools) -> tuple[slice, slice]:
    """The rectangle around a mask."""
    rows, columns = np.nonzero(mask)
    return slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)


def measure(video: Path, count: int, instruments: Instruments | None) -> dict[str, float]:
    """All figures of one video."""
    seen = list(moments(video, count))
    truth, masks = [m.truth for m in seen], [m.mask for m in seen]
    flow = flows(truth)
    cases = {
        "truth": truth,
        "frame by frame": unmask([m.masked for m in seen], Track(max_faces=1, networks_every=1), Smooth(keep=0.0)),
        "steadied": unmask([m.masked for m in seen], Track(max_faces=1), Smooth()),
    }
    figures: dict[str, float] = {"frames": len(seen)}
    for name, pictures in cases.items():
        figures[f"warping error, {name} (1e-4)"] = 1e4 * warping_error(pictures, masks, flow)
        sharp = [sharpness(picture, mask) for picture, mask in zip(pictures, masks, strict=True)]
        figures[f"sharpness, {name}"] = float(np.median(sharp))
        if instruments is not None:
            boxes = [around(mask) for mask in masks]
            pairs = zip(itertools.pairwise(pictures), boxes[1:], strict=True)
            steps = [instruments.lpips(a[box], b[box]) for (a, b), box in pairs]
            figures[f"LPIPS to the next, {name}"] = float(np.mean(steps))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--instruments", type=Path, help="folder with loaders.py, for LPIPS")
    arguments = parser.parse_args()
    instruments = Instruments(arguments.instruments) if arguments.instruments else None
    for video in arguments.videos:
        print(video.name)
        for name, value in measure(video, arguments.frames, instruments).items():
            print(f"  {name:34} {value:.3f}")


if __name__ == "__main__":
    main()
