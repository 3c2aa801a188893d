"""What commands share: options, and how they are checked."""

from pathlib import Path
from typing import Annotated

import typer

PersonOption = Annotated[
    Path | None, typer.Option(metavar="FILE.safetensors", help="A personal model; see `unmask personalize`.")
]

MemoryOption = Annotated[
    bool,
    typer.Option(
        "--memory/--no-memory",
        help="Show a face that was seen bare before its mask came as it was, or paint every face anew.",
    ),
]


def personal(person: Path | None) -> str:
    """The file of a personal model, read once so that a wrong one is said before anything starts; empty for none."""
    if person is None:
        return ""
    from unmask.models.person import Person

    Person.load(person)
    return str(person)
