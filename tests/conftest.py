"""Fixtures that several test files share."""

from pathlib import Path

import matplotlib.cbook
import numpy as np
import pytest
from faces import Portrait

from unmask.models.mediapipe import FaceDetector, FaceMesh
from unmask.train.data import largest_face, read_rgb
from unmask.train.masks import Outline
from unmask.train.materials import draw_mask

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of faces, masks and videos that lies beside the repository on the developers' machines."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the data folder ../shared/data is not there")
    return SHARED


@pytest.fixture(scope="session")
def portrait() -> Portrait:
    """Grace Hopper (public domain), bare and with a drawn surgical mask."""
    bare = read_rgb(Path(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    landmarks = largest_face(bare, FaceDetector(), FaceMesh())
    assert landmarks is not None
    rgb = bare.astype(np.float32) / np.float32(255)
    drawn = draw_mask(rgb, landmarks, np.random.default_rng(11), "surgical", Outline())
    return Portrait(bare, np.rint(drawn.rgb * 255).astype(np.uint8), drawn.coverage, landmarks)
