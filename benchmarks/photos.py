"""What one photo of another day is worth: pictures of people who have another picture, under a drawn surgical mask.

    python benchmarks/photos.py CROPS --instruments DIR [--folders celeba celebahq] [--people 200] [--sheet FILE.png]

Nobody says who is who in these folders; two pictures are of one person where the cosine of their face embeddings is
0.58 to 0.9 (different people: under 0.5 but for one pair in ten thousand; above 0.9 it may be the same photo). Every
person counts once, with a pair that chance chooses (seed 0). The second picture wears a drawn surgical mask and goes
through the pipeline's stages: painted ("painted"), with the first picture as the only view of a personal model
("photo"), and, to see what happens to somebody else, with the first picture of the next pair ("other"). Figures:
PSNR where the mask is, LPIPS and identity (cosine of face embeddings; see unmask.train.instruments) of the crop, and
how many faces are shown as in the photo. The judge of identity chose the pairs, too, so its figures say how much nearer
a photo brings it, not how near other judges would call that. Most of these pictures trained the inpainter.
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from steadiness import through

from unmask.models.person import BASE_KEY, base_hash, views_to_tensors
from unmask.models.seen import Seen, Views
from unmask.stream.stages.inpaint import Inpaint
from unmask.stream.stages.segment import Segment
from unmask.stream.stages.smooth import Smooth
from unmask.stream.stages.track import Track
from unmask.train.data import FaceCrops
from unmask.train.evaluate import psnr
from unmask.train.instruments import Instruments
from unmask.train.masks import Outline
from unmask.train.materials import draw_mask

U8 = npt.NDArray[np.uint8]
SAME = (0.58, 0.9)


def pairs(crops: FaceCrops, folders: list[str], judge: Instruments) -> list[tuple[int, int]]:
    """Two pictures of each person, no picture twice."""
    chosen, embeddings = [], []
    for index, name in enumerate(crops.names):
        if (
            name.split("/")[0] in folders
            and (found := judge.embedding(np.ascontiguousarray(crops.crops[index]))) is not None
        ):
            chosen.append(index)
            embeddings.append(found)
    alike = np.array(embeddings) @ np.array(embeddings).T
    one, other = np.nonzero(np.triu((alike > SAME[0]) & (alike < SAME[1]), 1))
    rng, used, result = np.random.default_rng(0), set(), []
    for pair in rng.permutation(np.stack([one, other], axis=1)).tolist():
        if not used & set(pair):
            used |= set(pair)
            result.append((chosen[pair[0]], chosen[pair[1]]))
    return result


def worn(crops: FaceCrops, index: int) -> tuple[U8, npt.NDArray[np.bool_]]:
    """A crop under a drawn mask, and where that is."""
    rgb = np.asarray(crops.crops[index]).astype(np.float32) / np.float32(255)
    mask = draw_mask(rgb, crops.points[index], np.random.default_rng(index), "surgical", Outline())
    return np.rint(mask.rgb * 255).astype(np.uint8), np.asarray(mask.coverage > 0.5)


def write_person(crops: FaceCrops, index: int, path: Path) -> str:
    """A personal model that holds one view."""
    views = Views()
    views.add(Seen(np.ascontiguousarray(crops.crops[index]), crops.points[index].astype(np.float32), 0.0))
    save_file(views_to_tensors(views), path, {BASE_KEY: base_hash()})
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crops", type=Path)
    parser.add_argument("--instruments", type=Path, required=True, help="folder with loaders.py")
    parser.add_argument("--folders", nargs="+", default=["celeba", "celebahq"])
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--sheet", type=Path, help="photo, masked, painted, with the photo, truth")
    arguments = parser.parse_args()
    judge, crops = Instruments(arguments.instruments), FaceCrops.open(arguments.crops)
    found = pairs(crops, arguments.folders, judge)[: arguments.people]
    print(f"{len(found)} people")
    rows: dict[str, list[tuple[float, float, float, bool]]] = {}
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        files = [write_person(crops, photo, Path(folder, f"{n}.safetensors")) for n, (photo, _) in enumerate(found)]
        for number, (photo, index) in enumerate(found):
            truth, (masked, mask) = np.ascontiguousarray(crops.crops[index]), worn(crops, index)
            results = [np.ascontiguousarray(crops.crops[photo]), masked]
            cases = {"painted": "", "photo": files[number], "other": files[(number + 1) % len(files)]}
            for name, person in cases.items():
                inpaint = Inpaint(person=person)
                (result,) = through([masked], (Track(max_faces=1), Segment(), inpaint, Smooth()))
                identity = judge.identity(truth, result)
                error = psnr((result.astype(np.float64) - truth)[mask])
                shown = inpaint.summary()["as_seen"] > 0
                rows.setdefault(name, []).append((error, judge.lpips(truth, result), identity or 0.0, shown))
                results.append(result)
            cells.append(np.hstack([*results, truth]))
    for name, values in rows.items():
        table = np.array(values, np.float64)
        for what, part in (("all", table), ("shown", table[table[:, 3] > 0])):
            if len(part):
                error, lpips, identity, _ = part.mean(axis=0)
                print(f"{name:8} {what:6} {len(part):4}  PSNR {error:.2f}  LPIPS {lpips:.4f}  identity {identity:.3f}")
    if arguments.sheet:
        cv2.imwrite(str(arguments.sheet), np.vstack(cells[:16])[..., ::-1])


if __name__ == "__main__":
    main()
