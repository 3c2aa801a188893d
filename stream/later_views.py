"""Faces that are bare only later in a file: a first pass through it keeps their views, the second one is given them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from unmask.stream.face_views import Seen, Views

Who = tuple[int, int]
"""A track, and how often it had begun anew: the same in every pass through the same frames."""


def save_views(path: Path, people: Mapping[Who, Views]) -> None:
    """Write views as .npz."""
    rows = [(who, cell, view) for who, views in people.items() for cell, view in views.views.items()]
    np.savez(
        path,
        who=np.array([who for who, _, _ in rows], np.int64).reshape(-1, 2),
        cell=np.array([cell for _, cell, _ in rows], np.int64).reshape(-1, 2),
        crop=np.array([view.crop for _, _, view in rows], np.uint8),
        points=np.array([view.points for _, _, view in rows], np.float32),
        seconds=np.array([view.seconds for _, _, view in rows], np.float64),
    )


def load_views(path: Path) -> dict[Who, Views]:
    """What `save_views` wrote."""
    people: dict[Who, Views] = {}
    with np.load(path) as data:
        arrays = (data[name] for name in ("who", "cell", "crop", "points", "seconds"))
        for who, cell, crop, points, seconds in zip(*arrays, strict=True):
            views = people.setdefault((int(who[0]), int(who[1])), Views())
            views.views[int(cell[0]), int(cell[1])] = Seen(crop, points, float(seconds))
    return people
