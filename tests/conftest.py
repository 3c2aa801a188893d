"""Fixtures that several test files share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of faces, masks and videos that lies beside the repository on the developers' machines."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the data folder ../shared/data is not there")
    return SHARED
