"""Faces that are bare only later in a file: a first pass through it keeps their views, the second one is given them.

They go to a file, each as its track ends, and come back as it begins: a film may hold thousands.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from unmask.models.seen import Seen, Views

Who = tuple[int, int]
"""A track, and how often it had begun anew: the same in every pass through the same frames."""


class ViewsWriter:
    """Writes views to a file, one person after the other.

    Args:
        path: replaced.

    Attributes:
        people: how many were written.
    """

    def __init__(self, path: Path) -> None:
        self._file = zipfile.ZipFile(path, "w")
        self.people = 0

    def add(self, who: Who, views: Views) -> None:
        """Write those of one person, who was not written before."""
        data = io.BytesIO()
        np.savez(
            data,
            cell=np.array(list(views.views), np.int64),
            crop=np.array([view.crop for view in views.views.values()], np.uint8),
            points=np.array([view.points for view in views.views.values()], np.float32),
            seconds=np.array([view.seconds for view in views.views.values()], np.float64),
        )
        self._file.writestr(_name(who), data.getvalue())
        self.people += 1

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class LaterViews(Mapping[Who, Views]):
    """What `ViewsWriter` wrote, read when it is asked for.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = zipfile.ZipFile(path)
        self._people = {_who(name): name for name in self._file.namelist()}

    def __getitem__(self, who: Who) -> Views:
        with np.load(io.BytesIO(self._file.read(self._people[who]))) as data:
            arrays = (data[name] for name in ("cell", "crop", "points", "seconds"))
            return Views(
                {
                    (int(cell[0]), int(cell[1])): Seen(crop, points, float(seconds))
                    for cell, crop, points, seconds in zip(*arrays, strict=True)
                }
            )

    def __contains__(self, who: object) -> bool:
        return who in self._people

    def __iter__(self) -> Iterator[Who]:
        return iter(self._people)

    def __len__(self) -> int:
        return len(self._people)

    def close(self) -> None:
        self._file.close()


def _name(who: Who) -> str:
    return f"{who[0]}.{who[1]}"


def _who(name: str) -> Who:
    track, begun = name.split(".")
    return int(track), int(begun)
