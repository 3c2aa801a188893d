"""From the segmenter's probabilities to the mask."""

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

_SURE: Final = 128
_LIKELY: Final = 50
"""Of 255. At its border a mask fades out over several pixels; cut at one half it comes out too small."""


def mask_region(probability: npt.NDArray[np.uint8] | npt.NDArray[np.float32], smallest_px: int = 1) -> U8:
    """Where mask is: what is likely and hangs together with something sure (hysteresis thresholding, Canny 1986,
    doi:10.1109/TPAMI.1986.4767851).

    Args:
        probability: (H, W) uint8 or float32, 0..255.
        smallest_px: area from which on a part counts; smaller ones are specks.

    Returns:
        (H, W) uint8, 255 where mask is, 0 elsewhere.
    """
    sure = probability >= _SURE
    if not sure.any():
        return np.zeros(probability.shape, np.uint8)
    count, labels, figures, _ = cv2.connectedComponentsWithStats(np.asarray(probability >= _LIKELY, np.uint8))
    kept = np.zeros(count, np.uint8)
    kept[labels[sure]] = 255
    kept[figures[:, cv2.CC_STAT_AREA] < smallest_px] = 0
    return np.asarray(kept[labels], np.uint8)
