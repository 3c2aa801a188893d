"""`make demo`: a masked clip made from nothing, unmasked by the command line, and compared with the truth.

The portrait (Rear Admiral Grace Hopper, public domain) comes with matplotlib. It moves, turns and scales over a soft
background and wears a drawn mask; the same clip without the mask is the truth that the result is measured against. In
a second, shorter clip the face is bare before it wears the mask: then it is shown as it was.

    python -m unmask.train.demo FOLDER
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import cv2
import matplotlib.cbook
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Colorspace

from unmask.errors import UnmaskError
from unmask.models.mediapipe import FaceDetector, FaceMesh, find_landmarks
from unmask.train.data import read_rgb
from unmask.train.masks import Outline
from unmask.train.materials import draw_mask

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Frames = list[U8]

WIDTH: Final = 1280
HEIGHT: Final = 720
RATE: Final = 25
SECONDS: Final = 4
AUDIO_RATE: Final = 48_000
MOMENTS: Final = (0.1, 0.4, 0.75)
"""The moments of the clip that the comparison shows, 0..1."""

BARE_FRAMES: Final = 32
"""Of the second clip, before the mask comes."""
PUT_ON_FRAMES: Final = 64

CELL: Final = 320
"""Side of a picture in the comparison, px."""


@dataclass(frozen=True, slots=True)
class Portrait:
    """The still that the clip is made of.

    Args:
        truth, masked: (H, W, 3) uint8 RGB, without and with the mask.
        alpha: (H, W) uint8, how much of each pixel the mask hides.
        paper: (H, W) uint8, how much of each pixel hides the background: soft edges, so that it shows no frame.
        background: (720, 1280, 3) uint8 RGB.
    """

    truth: U8
    masked: U8
    alpha: U8
    paper: U8
    background: U8


def make_portrait(seed: int = 11) -> Portrait:
    """Load the portrait and draw a mask on it."""
    path = str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    truth = read_rgb(Path(path))
    faces = find_landmarks(truth, FaceDetector(), FaceMesh())
    if not faces:
        raise UnmaskError("no face was found in the portrait")
    rgb, rng = truth.astype(np.float32) / np.float32(255), np.random.default_rng(seed)
    drawn = draw_mask(rgb, faces[0][1], rng, kind="surgical", outline=Outline())
    masked, alpha = (np.rint(255 * part).astype(np.uint8) for part in (drawn.rgb, drawn.coverage))
    return Portrait(truth, masked, alpha, _paper(alpha.shape), _background(truth))


@dataclass(frozen=True, slots=True)
class Shot:
    """One frame of the clip: what the camera saw, what is under the mask, and where the mask is."""

    masked: U8
    truth: U8
    mask: U8


def render(portrait: Portrait, moment: float) -> Shot:
    """The clip at `moment` (0..1). The same arguments give the same pixels, so that no frame need be kept."""
    matrix = _motion(portrait.truth.shape[0], portrait.truth.shape[1], moment)
    paper = cv2.merge([_warp(portrait.paper, matrix)] * 3)
    # Exact to a level or so, which is far below what the codec changes.
    background = cv2.multiply(portrait.background, 255 - paper, scale=1 / 255)
    masked, truth = (
        cv2.add(background, cv2.multiply(_warp(still, matrix), paper, scale=1 / 255))
        for still in (portrait.masked, portrait.truth)
    )
    return Shot(np.asarray(masked, np.uint8), np.asarray(truth, np.uint8), _warp(portrait.alpha, matrix))


def _motion(height: int, width: int, moment: float) -> F64:
    """(3, 3) map from the portrait to the frame: it drifts, nods in the plane, comes nearer, and turns a little."""
    phase = 2 * np.pi * moment
    angle, zoom = np.radians(9 * np.sin(phase)), 1.25 + 0.15 * np.sin(phase + 1)
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    x, y = WIDTH / 2 + 170 * np.sin(phase + 0.6), HEIGHT / 2 + 60 + 35 * np.sin(2 * phase)
    centred = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    turned = np.array([[1, 0, 0], [0, 1, 0], [3e-4 * np.sin(phase + 2), 1e-4 * np.cos(phase), 1]])
    placed = np.array([[cos, -sin, x], [sin, cos, y], [0, 0, 1]])
    return np.asarray(placed @ turned @ centred, np.float64)


def _warp(still: U8, matrix: F64) -> U8:
    return np.asarray(cv2.warpPerspective(still, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR), np.uint8)


def _paper(shape: tuple[int, ...]) -> U8:
    edge = 24
    paper = np.zeros(shape, np.uint8)
    paper[edge:-edge, edge:-edge] = 255
    return np.asarray(cv2.GaussianBlur(paper, (0, 0), edge / 3), np.uint8)


def _background(still: U8) -> U8:
    small = cv2.GaussianBlur(cv2.resize(still, (64, 36), interpolation=cv2.INTER_AREA), (0, 0), 3)
    return np.asarray(cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), np.uint8)


def write_clip(path: Path, portrait: Portrait) -> None:
    """Write the masked clip, with a sound track that rises in pitch."""
    count = RATE * SECONDS
    write_frames(path, (render(portrait, index / count).masked for index in range(count)), sound=_chirp())


def write_put_on(path: Path, portrait: Portrait) -> None:
    """Write the second clip: bare, then masked."""
    shots = (render(portrait, index / (RATE * SECONDS)) for index in range(PUT_ON_FRAMES))
    write_frames(path, (shot.truth if index < BARE_FRAMES else shot.masked for index, shot in enumerate(shots)))


def write_frames(path: Path, frames: Iterable[U8], crf: int = 16, sound: F32 | None = None) -> None:
    """Write (720, 1280, 3) RGB frames as H.264, and mono samples at 48 kHz as AAC."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": str(crf), "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.colorspace = Colorspace.ITU709
        audio = None if sound is None else container.add_stream("aac", rate=AUDIO_RATE, layout="mono")
        for rgb in frames:
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            container.mux(video.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(video.encode())
        if sound is not None and audio is not None:
            samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            samples.sample_rate, samples.time_base, samples.pts = AUDIO_RATE, Fraction(1, AUDIO_RATE), 0
            container.mux(audio.encode(samples))
            container.mux(audio.encode())


def _chirp() -> F32:
    t = np.arange(AUDIO_RATE * SECONDS) / AUDIO_RATE
    return np.asarray(0.2 * np.sin(2 * np.pi * (220 * t + 55 * t**2)), np.float32)


def read_clip(path: Path) -> list[U8]:
    """All frames as (H, W, 3) uint8 RGB."""
    with av.open(str(path)) as container:
        return [
            np.asarray(frame.reformat(format="rgb24", src_colorspace=Colorspace.ITU709).to_ndarray(), np.uint8)
            for frame in container.decode(video=0)
        ]


def psnr_in_mask(frames: list[U8], portrait: Portrait, first: int = 0) -> float:
    """Peak signal-to-noise ratio in dB against the truth, over all pixels that the mask hides more than half, from one
    frame on."""
    squared, count = 0.0, 0
    for index, frame in enumerate(frames[first:], first):
        shot = render(portrait, index / (RATE * SECONDS))
        inside = shot.mask > 127
        squared += float(((frame[inside].astype(np.float64) - shot.truth[inside]) ** 2).sum())
        count += 3 * int(inside.sum())
    return 10 * float(np.log10(255**2 * count / squared))


def run_unmask(*arguments: str | Path) -> None:
    """Run the command line as a user would. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "unmask.cli", *map(str, arguments)], check=True)


def predicted_masks(pictures: list[U8]) -> list[U8]:
    """(H, W) uint8 masks that `unmask image` finds in (H, W, 3) RGB pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("in", "out", "mask"):
            (folder / part).mkdir()
        for index, picture in enumerate(pictures):
            cv2.imwrite(str(folder / "in" / f"{index}.png"), picture[..., ::-1])
        run_unmask("image", folder / "in", "-o", folder / "out", "--mask-dir", folder / "mask", "--quiet")
        return [read_rgb(folder / "mask" / f"{index}.png")[..., 0] for index in range(len(pictures))]


def compare(path: Path, clip: tuple[Frames, Frames], put_on: tuple[Frames, Frames], portrait: Portrait) -> None:
    """Write masked, predicted mask, result and truth side by side, one row for each of `MOMENTS`, and one for the end
    of the second clip; both are given as they were and unmasked."""
    chosen = [(clip, round(moment * len(clip[0]))) for moment in MOMENTS] + [(put_on, PUT_ON_FRAMES - 1)]
    masks = predicted_masks([masked[index] for (masked, _), index in chosen])
    rows = [_labels(("masked", "predicted mask", "unmasked", "truth"))]
    for ((masked, unmasked), index), mask in zip(chosen, masks, strict=True):
        shot = render(portrait, index / (RATE * SECONDS))
        cells = (masked[index], cv2.merge([mask] * 3), unmasked[index], shot.truth)
        rows.append(np.hstack([_cell(np.asarray(picture, np.uint8), shot.mask) for picture in cells]))
    rows.insert(-1, _labels(("seen without a mask one second before", "", "", "")))
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1])


def _cell(picture: U8, mask: U8) -> U8:
    """The square around the mask, somewhat larger than the face."""
    x, y, width, height = cv2.boundingRect(mask)
    side = min(round(2.0 * max(width, height)), HEIGHT, WIDTH)
    left = min(max(x + width // 2 - side // 2, 0), WIDTH - side)
    top = min(max(y + height // 3 - side // 2, 0), HEIGHT - side)
    square = picture[top : top + side, left : left + side]
    return np.asarray(cv2.resize(square, (CELL, CELL), interpolation=cv2.INTER_AREA), np.uint8)


def _labels(texts: tuple[str, ...]) -> U8:
    row = np.full((36, CELL * len(texts), 3), 255, np.uint8)
    for column, text in enumerate(texts):
        cv2.putText(row, text, (column * CELL + 8, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 1, cv2.LINE_AA)
    return row


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    masked, unmasked, comparison = (folder / name for name in ("masked.mp4", "unmasked.mp4", "compare.png"))
    put_on, taken_off = folder / "put-on.mp4", folder / "put-on.unmasked.mp4"
    portrait = make_portrait()
    write_clip(masked, portrait)
    write_put_on(put_on, portrait)
    run_unmask("video", masked, "-o", unmasked, "--overwrite")
    run_unmask("video", put_on, "-o", taken_off, "--overwrite")
    before, after, seen_before, seen_after = (read_clip(path) for path in (masked, unmasked, put_on, taken_off))
    compare(comparison, (before, after), (seen_before, seen_after), portrait)
    for path in (masked, unmasked, put_on, taken_off, comparison):
        print(path)
    before_db, after_db = psnr_in_mask(before, portrait), psnr_in_mask(after, portrait)
    seen_db = psnr_in_mask(seen_after, portrait, BARE_FRAMES)
    print(f"PSNR in the mask: {after_db:.2f} dB (with the mask on: {before_db:.2f} dB)")
    print(f"  of a face that was seen without it a second before: {seen_db:.2f} dB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
