"""What commands share: options, and how they are checked."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from unmask.stream.trackers import Tracker

DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda[:N]",
        help="Where segmenter and inpainter run; the tracker's networks run on the processor.",
    ),
]

EngineOption = Annotated[
    str, typer.Option("--engine", metavar="auto|tensorrt|torch-tensorrt|torch|openvino", help="What runs the networks.")
]

MaxFacesOption = Annotated[
    int, typer.Option("--max-faces", metavar="N", min=1, max=64, help="Faces processed per frame, the largest first.")
]

TrackerOption = Annotated[
    Tracker,
    typer.Option("--tracker", metavar="unmask|mediapipe", help="Whose networks find the faces and their points."),
]

OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace outputs and reports that exist.")]

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Write nothing but errors.")]

PersonOption = Annotated[
    Path | None, typer.Option(metavar="FILE.safetensors", help="A personal model; see `unmask personalize`.")
]

MemoryOption = Annotated[
    bool,
    typer.Option(
        "--memory/--no-memory",
        help="Show a face as it was seen bare, before its mask came or by --person, or paint every face anew.",
    ),
]


def personal(person: Path | None, notice: Callable[[str], None]) -> str:
    """The file of a personal model, read once so that a wrong one is said before anything starts; empty for none.

    Args:
        person: the file.
        notice: takes a line where it holds no views.
    """
    if person is None:
        return ""
    from unmask.models.person import Person

    if not Person.load(person).views:  # it is an older file
        notice(f"'{person}' holds no views of the face; make it again with: unmask personalize")
    return str(person)
