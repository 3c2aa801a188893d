"""From the segmenter's probabilities to the mask."""

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

_SURE: Final = 128
_LIKELY: Final = 50
"""Of 255. At its border a mask fades out over several pixels; cut at one half it comes out too small."""

NO_MASK: Final = 25
"""Of 255: what has less is something in front of the mask, such as the rim of glasses, however narrow."""

_SMOOTH_PX: Final = 0.85
"""Standard deviation of what smooths the border: people draw it without jags, and a little further out."""

_HOLE_SHARE: Final = 0.15
"""Holes up to this share of a mask are prints, valves or folds on it."""

_BODY: Final = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
"""What is narrower is no part of a mask's body. Between an ear loop and the body lies the cheek, which is no hole."""
_BESIDE: Final = np.ones((7, 7), np.uint8)
"""How far beyond its body, on both sides together, a mask's corners and seams reach."""
_LOOP_PX: Final = 14
"""A narrow part must be so long, and begin at the body: it is an ear loop then."""


def mask_region(probability: npt.NDArray[np.uint8] | npt.NDArray[np.float32], smallest_px: int = 1) -> U8:
    """Where mask is: what is likely and hangs together with something sure (hysteresis thresholding, Canny 1986,
    doi:10.1109/TPAMI.1986.4767851), and small holes in it; of what is narrow, ear loops.

    Args:
        probability: (H, W) uint8 or float32, 0..255.
        smallest_px: area from which on a part counts; smaller ones are specks.

    Returns:
        (H, W) uint8, 255 where mask is, 0 elsewhere.
    """
    if not (probability >= _SURE).any():
        return np.zeros(probability.shape, np.uint8)
    whole = np.rint(probability).astype(np.uint8) if probability.dtype != np.uint8 else probability
    smooth = cv2.GaussianBlur(whole, (5, 5), _SMOOTH_PX)
    likely = (smooth >= _LIKELY) & (whole >= NO_MASK)
    count, labels, figures, _ = cv2.connectedComponentsWithStats(likely.astype(np.uint8))
    kept = np.zeros(count, np.uint8)
    kept[labels[smooth >= _SURE]] = 255
    kept[0] = 0
    kept[figures[:, cv2.CC_STAT_AREA] < smallest_px] = 0
    region = np.asarray(kept[labels], np.uint8)
    body = np.asarray(cv2.morphologyEx(region, cv2.MORPH_OPEN, _BODY), np.uint8)
    _fill_holes(region, body)
    return _with_loops_only(region, body)


def narrow_parts(region: U8, body: U8 | None = None) -> U8:
    """(H, W) uint8, 255 where a region (ear loop, in one from `mask_region`) is narrow; `body` is its wide part."""
    wide = cv2.morphologyEx(region, cv2.MORPH_OPEN, _BODY) if body is None else body
    return np.asarray(region & ~cv2.dilate(wide, _BESIDE), np.uint8)


def _fill_holes(region: U8, body: U8) -> None:
    """Write the small holes that the body surrounds into the region."""
    outlines, levels = cv2.findContours(body, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    most = _HOLE_SHARE * cv2.countNonZero(region)
    for outline, (_, _, _, around) in zip(outlines, levels[0] if outlines else (), strict=True):
        if around >= 0 and cv2.contourArea(outline) < most:
            for x in (region, body):
                cv2.drawContours(x, [outline], -1, 255, cv2.FILLED)


def _with_loops_only(region: U8, body: U8) -> U8:
    """The region without what is narrow and no ear loop."""
    narrow = narrow_parts(region, body)
    solid = region & ~narrow
    outlines, _ = cv2.findContours(narrow, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    near, kept = cv2.dilate(solid, _BODY), np.zeros_like(region)
    loops = [o for o in outlines if max(cv2.boundingRect(o)[2:]) >= _LOOP_PX and near[o[:, 0, 1], o[:, 0, 0]].any()]
    cv2.drawContours(kept, loops, -1, 255, cv2.FILLED)
    return np.asarray(solid | (kept & narrow), np.uint8)
