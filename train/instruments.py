"""Loads the judges of a folder: networks that measure and are no part of this project.

The folder holds a `loaders.py` that offers `LPIPSSqueeze`, `MXFace`, `detect`, `warp` and `REF112`.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


class Instruments:
    """LPIPS and identity.

    Args:
        folder: with `loaders.py`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        spec = importlib.util.spec_from_file_location("loaders", folder / "loaders.py")
        assert spec is not None
        assert spec.loader is not None
        self._tools: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._tools)
        self._lpips, self._face = self._tools.LPIPSSqueeze(), self._tools.MXFace().eval()

    def lpips(self, a: U8, b: U8) -> float:
        """LPIPS (Zhang et al. 2018, arXiv:1801.03924) of two (H, W, 3) uint8 RGB pictures, by SqueezeNet."""
        with torch.no_grad():
            x, y = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in (a, b))
            return float(self._lpips(x, y))

    def lpips_maps(self, rgb: torch.Tensor) -> list[torch.Tensor]:
        """The feature maps that LPIPS compares, without the first, of (N, 3, H, W) uint8 RGB pictures."""
        with torch.no_grad():
            maps: list[torch.Tensor] = self._lpips.feats(rgb.float() / 127.5 - 1)
        return maps[1:]

    def embedding(self, rgb: U8) -> F32 | None:
        """(D,) float32 of length 1: whose face a (H, W, 3) uint8 RGB picture shows; None where it shows none."""
        with torch.no_grad():
            _, scores, points = self._tools.detect(rgb)
            if not len(scores):
                return None
            return np.asarray(self._embedding(rgb, points[int(np.argmax(scores))]), np.float32)

    def identity(self, truth: U8, result: U8) -> float | None:
        """Cosine of the face embeddings of two pictures, aligned by the truth's face; None where it has none."""
        with torch.no_grad():
            _, scores, points = self._tools.detect(truth)
            if not len(scores):
                return None
            best = points[int(np.argmax(scores))]
            return float(self._embedding(truth, best) @ self._embedding(result, best))

    def _embedding(self, rgb: U8, points: Any) -> Any:
        aligned = np.ascontiguousarray(self._tools.warp(rgb, points, self._tools.REF112, (112, 112)))
        return self._face(torch.from_numpy(aligned).permute(2, 0, 1)[None].float())[0]
