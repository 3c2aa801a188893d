"""Old faces in training: labels of ages, what learns from them, and the loss that asks for the true age."""

from pathlib import Path

import numpy as np
import pytest
import torch
from training_faces import small_recipe, write_crops, write_efficientnet
from typer.testing import CliRunner

from unmask.cli import app
from unmask.errors import UserError
from unmask.train.ages import MAPS, AgeHead, fit_age_head, fit_ridge, pooled, read_ages
from unmask.train.data import FaceCrops
from unmask.train.efficientnet import EfficientNet
from unmask.train.inpainter import EVEN_SHARE, PaintTrainer
from unmask.train.losses import lower_part
from unmask.train.registry import trainer_of

FACES = 72


def wrinkled(folder: Path) -> tuple[Path, Path]:
    """Crops whose lower faces have the more lines the older they are, and the list of their ages."""
    crops = write_crops(folder / "crops", FACES)
    pictures = np.load(crops / "crops.npy", mmap_mode="r+")
    names, ages = FaceCrops.open(crops).names, np.random.default_rng(0).uniform(5, 85, FACES)
    for picture, years in zip(pictures, ages, strict=False):
        picture[100 : 100 + int(1.5 * years) : 3, 60:200] = 20
    pictures.flush()
    listed = folder / "ages.csv"
    listed.write_text("picture,years\n" + "".join(f"{n},{a:.0f}\n" for n, a in zip(names, ages, strict=True)))
    return crops, listed


def test_a_list_of_ages_is_read_and_wrong_ones_are_named(tmp_path: Path) -> None:
    listed = tmp_path / "ages.csv"
    listed.write_text("picture,years\naaf/1.webp,7\nb/2.png,71\n")
    assert read_ages(listed) == {"aaf/1.webp": 7.0, "b/2.png": 71.0}
    with pytest.raises(UserError, match="cannot read"):
        read_ages(tmp_path / "none.csv")
    for text in ("name,age\na,1\n", "picture,years\na,old\n", "picture,years\na\n"):
        listed.write_text(text)
        with pytest.raises(UserError, match="needs a line 'picture,years'"):
            read_ages(listed)
    for years in ("-3", "999", "nan"):
        listed.write_text(f"picture,years\na.png,{years}\n")
        with pytest.raises(UserError, match=r"says that 'a\.png' is "):
            read_ages(listed)


def test_ages_are_learnt_from_faces_and_asked_back(tmp_path: Path) -> None:
    crops, listed = wrinkled(tmp_path)
    weights, out = write_efficientnet(tmp_path / "lite.pth"), tmp_path / "ages.safetensors"
    command = ["data", "ages", str(crops), "--labels", str(listed), "--efficientnet", str(weights), "-o", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "years wrong on average, 2 validation faces" in result.output
    faces, ages = FaceCrops.open(crops), read_ages(listed)
    network, head = EfficientNet(weights), AgeHead.load(out)
    rgb = torch.from_numpy(np.stack([faces.crops[i] for i in range(FACES)])).permute(0, 3, 1, 2).float() / 255
    said = head(network.features(lower_part(rgb), MAPS)).numpy()
    assert np.corrcoef(said, [ages[name] for name in faces.names])[0, 1] > 0.9
    with pytest.raises(UserError, match="only 0 of the training faces"):
        fit_age_head(network, faces, {"someone/else.png": 50.0})


def test_every_decade_counts_alike() -> None:
    """Nineteen of twenty faces are young, and the old ones are told as well as those."""
    rng = np.random.default_rng(1)
    years = np.where(np.arange(2000) % 20 == 0, 75.0, 25.0)
    features = torch.from_numpy(years[:, None] / 10 + rng.normal(0, 5.0, (2000, 1))).float()
    said = fit_ridge(features, years).years_of(features).numpy()
    young, old = (said[years == which].mean() for which in (25.0, 75.0))
    assert 40 < (young + old) / 2 < 60, "an unweighted mean would be 27"


def test_the_loss_asks_for_a_face_as_old_as_the_true_one(tmp_path: Path) -> None:
    crops, listed = wrinkled(tmp_path)
    network = EfficientNet(write_efficientnet(tmp_path / "lite.pth"))
    faces, ages = FaceCrops.open(crops), read_ages(listed)
    head, _, _ = fit_age_head(network, faces, ages)
    order = np.argsort([ages[name] for name in faces.names])
    young, old = (
        torch.from_numpy(faces.crops[i].copy()).permute(2, 0, 1)[None].float() / 255 for i in (order[0], order[-1])
    )

    def apart(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return head.distance(*(network.features(lower_part(x), MAPS) for x in (fake, real)))

    assert apart(old, old) < 1e-6
    assert apart(young, old) > 1.0, "decades"
    painted = young.clone().requires_grad_()
    optimizer = torch.optim.Adam([painted], 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        apart(painted, old).backward()
        optimizer.step()
    assert apart(painted, old) < 0.2 * apart(young, old)


def test_heads_of_other_networks_are_refused(tmp_path: Path) -> None:
    network = EfficientNet(write_efficientnet(tmp_path / "lite.pth"))
    maps = network.features(torch.rand(1, 3, 40, 64), MAPS)
    width = pooled(maps.values()).shape[1]
    assert width == 2 * sum(network.channels(MAPS).values())
    head = AgeHead(torch.zeros(width + 1), torch.ones(width + 1), torch.ones(width + 1), torch.tensor(40.0))
    with pytest.raises(UserError, match="another EfficientNet-Lite"):
        head(maps)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="was not written by unmask data ages"):
        AgeHead.load(tmp_path / "x.safetensors")


def test_faces_of_all_decades_are_drawn_alike(tmp_path: Path) -> None:
    data, listed = tmp_path / "data", tmp_path / "ages.csv"
    write_crops(data / "crops", 40)
    names = FaceCrops.open(data / "crops").names
    years = {5: 78, 6: 71, 7: 3}
    listed.write_text("picture,years\n" + "".join(f"{n},{years.get(i, 25)}\n" for i, n in enumerate(names) if i < 30))

    def trainer(run: str) -> PaintTrainer:
        overrides = (f"crops={data}/crops", f"ages={listed}")
        found = trainer_of(small_recipe("inpainter", tmp_path / "other", tmp_path / run, *overrides))
        assert isinstance(found, PaintTrainer)
        return found

    even = trainer("a")
    assert [list(x) for x in even.decades[::2]] == [[7], [5, 6]]
    phase = even.recipe.phases[0]
    drawn = np.array([even.evened(draw).face for seed in range(500) for draw in even.draws(phase, seed)])
    young, old = (np.isin(drawn, which).mean() for which in ([7], [5, 6]))
    assert abs(young - (EVEN_SHARE / 3 + (1 - EVEN_SHARE) / 38)) < 0.04
    assert abs(old - (EVEN_SHARE / 3 + (1 - EVEN_SHARE) * 2 / 38)) < 0.04
    listed.write_text("picture,years\nnobody/1.png,80\n")
    with pytest.raises(UserError, match="none of 38 training faces has one"):
        trainer("b")
