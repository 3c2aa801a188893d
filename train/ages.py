"""How old faces look: labels by eye, and a head on EfficientNet-Lite that tells it from the lower face.

Few faces in collections of pictures are old, and what is painted on an old one looks young: the network knows what
most lower faces look like. Some faces are drawn evenly over all ages, and the loss "age" asks for one as old as the
true one.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import UserError
from unmask.train.data import FaceCrops
from unmask.train.efficientnet import EfficientNet
from unmask.train.losses import lower_part

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

MAPS: Final = ("stage2", "stage3", "stage5", "stage7")
"""The feature maps that the head looks at: those of the recipes' discriminator of shapes, so that they cost nothing."""
_OLDEST: Final = 130.0
_RIDGE: Final = 0.3
_DECADES: Final = 10
_LAST: Final = 7
"""Few look 80 or more, and would be drawn over and over."""
_FEWEST: Final = 20
_BATCH: Final = 32


def read_ages(file: Path) -> dict[str, float]:
    """Years by picture ("folder/file"), from lines "picture,years" under a line of headings.

    Raises:
        UserError: the file cannot be read, or has other lines.
    """
    try:
        with file.open(newline="") as lines:
            ages = {row["picture"]: float(row["years"]) for row in csv.DictReader(lines)}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"ages: cannot read '{file}': {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"ages: '{file}' needs a line 'picture,years', and one like it for each face") from error
    if wrong := [name for name, years in ages.items() if not 0 <= years <= _OLDEST]:
        raise UserError(f"ages: '{file}' says that '{wrong[0]}' is {ages[wrong[0]]:g} years old")
    return ages


def by_decade(faces: FaceCrops, chosen: Indices, ages: Mapping[str, float]) -> list[Indices]:
    """Those of the `chosen` faces that have an age, by decade, as far as there are any; the last has no end. Raises
    UserError where none has."""
    known = [(i, min(int(ages[faces.names[i]] // 10), _LAST)) for i in chosen if faces.names[i] in ages]
    if not known:
        raise UserError(f"ages: none of {len(chosen)} training faces has one; the names are 'folder/file'")
    return [np.array([i for i, of in known if of == decade], np.int64) for decade in sorted({d for _, d in known})]


def pooled(maps: Iterable[Tensor]) -> Tensor:
    """(N, D) float32: mean and deviation of each channel of the feature maps of lower faces, where the face is."""
    found = []
    for x in maps:
        high, wide = x.shape[2:]
        face = x[:, :, : max(1, 9 * high // 10), wide // 5 : max(1, 4 * wide // 5)].float()
        found += [face.mean((2, 3)), (face.var((2, 3), correction=0) + 1e-6).sqrt()]
    return torch.cat(found, 1)


class AgeHead(nn.Module):
    """Years, linear in `pooled` feature maps.

    Args:
        mean, scale: (D,) of the features.
        weight: (D,).
        years: what the mean has.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    years: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, weight: Tensor, years: Tensor) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("scale", scale), ("weight", weight), ("years", years)):
            self.register_buffer(name, value.float())

    @classmethod
    def load(cls, file: Path) -> "AgeHead":
        """Raises UserError where the file was not written by `unmask data ages`."""
        try:
            return cls(**load_file(file))
        except (OSError, SafetensorError, TypeError) as error:
            raise UserError(f"age_weights: '{file}' was not written by unmask data ages: {error}") from error

    def save(self, file: Path) -> None:
        """Write what `load` reads."""
        file.write_bytes(save(self.state_dict()))  # `save_file` makes files for their owner alone

    def years_of(self, features: Tensor) -> Tensor:
        """(N,) years, from (N, D) pooled feature maps."""
        return self.years + ((features - self.mean) / self.scale) @ self.weight

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        """(N,) years, from the feature maps of lower faces by name. Raises UserError where they are of another
        EfficientNet-Lite than the head learnt from."""
        features = pooled(maps[name] for name in MAPS)
        if features.shape[1] != len(self.mean):
            raise UserError("age_weights: made with another EfficientNet-Lite; make them again with unmask data ages")
        return self.years_of(features)

    def distance(self, fake: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        """How many decades the painted faces look younger or older than the real ones; squared below one."""
        with torch.no_grad():
            wanted = self(real)
        return F.smooth_l1_loss(self(fake) / 10.0, wanted / 10.0)


def fit_age_head(network: EfficientNet, faces: FaceCrops, ages: Mapping[str, float]) -> tuple[AgeHead, F32, F32]:
    """Learn to tell ages from the training faces that have a label.

    Args:
        network: whose maps are looked at.
        faces: crops, of which the validation split is kept out.
        ages: by picture, of some of them.

    Returns:
        The head, and of the labelled validation faces the years by label and by the head, (M,) each.

    Raises:
        UserError: too few of the faces have an age.
    """
    labelled = np.array([i for i, name in enumerate(faces.names) if name in ages], np.int64)
    kept = np.isin(labelled, faces.split(validation=True))
    if (~kept).sum() < 2 * _FEWEST:
        raise UserError(f"ages: only {(~kept).sum()} of the training faces have an age; the names are 'folder/file'")
    years = np.array([ages[faces.names[i]] for i in labelled])
    features = torch.cat(list(_features(network, faces, labelled)))
    head = fit_ridge(features[torch.from_numpy(~kept)], years[~kept])
    said = head.years_of(features[torch.from_numpy(kept)])
    return head, years[kept].astype(np.float32), np.asarray(said, np.float32)


def _features(network: EfficientNet, faces: FaceCrops, chosen: Indices) -> Iterator[Tensor]:
    for start in range(0, len(chosen), _BATCH):
        crops = torch.from_numpy(np.stack([faces.crops[i] for i in chosen[start : start + _BATCH]]))
        rgb = crops.permute(0, 3, 1, 2).float() / 255.0
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            lower = lower_part(rgb).contiguous(memory_format=torch.channels_last)
            yield pooled(network.features(lower, MAPS).values())


def fit_ridge(features: Tensor, years: F64) -> AgeHead:
    """Ridge regression (Hoerl and Kennard 1970, doi:10.1080/00401706.1970.10488634) in which each decade counts alike.

    Args:
        features: (N, D) of N faces, as `pooled` gives them.
        years: (N,) of the same faces.
    """
    x = features.double().numpy()
    decades = np.minimum(years // 10, _DECADES - 1).astype(int)
    share = 1.0 / np.maximum(np.bincount(decades, minlength=_DECADES), _FEWEST)[decades]
    share /= share.mean()
    mean, scale = x.mean(0), (x.std(0) + 1e-6) * np.sqrt(x.shape[1])
    middle = float((share * years).sum() / share.sum())
    z = (x - mean) / scale
    weight = z.T @ np.linalg.solve(z @ z.T + _RIDGE * np.diag(1.0 / share), years - middle)
    return AgeHead(torch.from_numpy(mean), torch.from_numpy(scale), torch.from_numpy(weight), torch.tensor(middle))
