"""Real faces in profile: marks by eye become landmarks, and these take the place of what MediaPipe's mesh finds."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from faces import Portrait

from unmask.errors import UserError
from unmask.models.geometry import head_pose
from unmask.train.profiles import ProfileFace, fit_mesh, mean_mesh, read_profiles
from unmask.train.tracker_data import TrackerData, box_of, is_validation_scene, prepare_scenes

RIGHT, LEFT = (168, 33, 234, 4, 152), (168, 263, 454, 4, 152)
"""Bridge of the nose, corner of the near eye, tragus, tip of the nose and chin of a face that looks there."""


def turned(mesh: np.ndarray, yaw: float, roll: float, scale: float) -> np.ndarray:
    """A mesh (468, 3) that looks aside by degrees, as seen in a picture."""
    (c, s), (cr, sr) = ((np.cos(a), np.sin(a)) for a in np.radians([yaw, roll]))
    points = mesh @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]).T
    return scale * points @ np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]]).T + (300, 200, 0)


@pytest.mark.parametrize(("facing", "marked", "sign"), [("right", RIGHT, 1), ("left", LEFT, -1)])
@pytest.mark.parametrize("yaw", [60, 80, 95])
def test_five_marks_place_all_points_of_a_profile(
    portrait: Portrait, facing: str, marked: tuple[int, ...], sign: int, yaw: int
) -> None:
    mean = mean_mesh([portrait.landmarks])
    truth = turned(mean, sign * yaw, 12, 90)
    face = ProfileFace("a.png", facing, float(np.radians(yaw + 8)), truth[list(marked), :2].astype(np.float32))
    found = fit_mesh(face, mean)
    away = np.linalg.norm(found[:, :2] - truth[:, :2], axis=1) / 90
    assert away.mean() < 0.03, "in distances of the outer eye corners"
    assert np.degrees(head_pose(found).yaw) == pytest.approx(sign * yaw, abs=6)


def test_a_mesh_is_bent_to_marks_that_it_cannot_meet(portrait: Portrait) -> None:
    mean = mean_mesh([portrait.landmarks])
    marks = turned(mean, 85, 0, 90)[list(RIGHT), :2]
    marks[4] += (0, 25)  # a longer chin than on average
    found = fit_mesh(ProfileFace("a.png", "right", float(np.radians(85)), marks.astype(np.float32)), mean)
    assert np.linalg.norm(found[RIGHT[4], :2] - marks[4]) < 10


def test_marked_profiles_take_the_place_of_what_is_found_there(portrait: Portrait, tmp_path: Path) -> None:
    name = next(f"{n}.png" for n in range(100) if not is_validation_scene(f"{n}.png"))
    cv2.imwrite(str(tmp_path / name), portrait.masked[..., ::-1])
    box = ",".join(str(round(float(v))) for v in box_of(portrait.landmarks))
    (tmp_path / "boxes.csv").write_text(f"file,label,x0,y0,x1,y1\n{name},with_mask,{box}\n")
    marked = portrait.landmarks + np.float32(5)
    for kept, profiles in ((marked, {name: [marked]}), (portrait.landmarks, {})):
        found = [portrait.landmarks]
        prepare_scenes(tmp_path, [], lambda rgb: found, tmp_path, lambda done, total: None, None, profiles)  # noqa: B023
        for array in ("faces", "inside", "points", "kinds"):
            np.save(tmp_path / f"{array}.npy", np.zeros((0, 1)))
        data = TrackerData.open(tmp_path)
        np.testing.assert_allclose(data.scenes[0].meshes, [kept])
        assert data.profiles == (((0, 0),) if profiles else ())
    assert len(json.loads((tmp_path / "scenes.json").read_text())[0]["faces"]) == 1


@pytest.mark.parametrize("line", ["a.png,up,80,1 2 3 4 5 6 7 8 9 10", "a.png,left,80,1 2 3 4", "a.png,left,far,1 2"])
def test_a_broken_line_of_profiles_is_a_mistake(tmp_path: Path, line: str) -> None:
    (tmp_path / "profiles.csv").write_text(f"file,facing,yaw,marks\n{line}\n")
    with pytest.raises(UserError, match="needs the columns file,facing,yaw,marks"):
        read_profiles(tmp_path / "profiles.csv")
    with pytest.raises(UserError, match="cannot read the profiles"):
        read_profiles(tmp_path / "none.csv")
