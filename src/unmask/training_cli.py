"""The commands of the training ground: data, train, evaluate, export. Imported by `unmask.cli`, and just as lazily."""

import importlib.util
import json
from pathlib import Path
from typing import Annotated

import typer

from unmask.errors import UserError
from unmask.progress import say

data = typer.Typer(help="Prepare training data.", no_args_is_help=True)
train = typer.Typer(help="Train a network. An interrupted run goes on where it stopped.", no_args_is_help=True)
evaluate = typer.Typer(help="Measure the networks, as users run them.", no_args_is_help=True)

_Config = Annotated[Path, typer.Option(metavar="FILE.yaml", help="The recipe; see train/recipes.")]
_Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where the network runs.")]
_Crops = Annotated[Path, typer.Option(metavar="DIR", help="Folder written by `unmask data crops`.")]
_Json = Annotated[Path | None, typer.Option("--report", metavar="FILE.json", help="Write the figures as JSON too.")]


def _need_training_packages() -> None:
    missing = [
        name
        for name in ("torch", "safetensors", "onnx", "onnxscript", "mlflow")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise UserError(f"training needs {', '.join(missing)}: pip install 'unmask[train]'")


def _progress(done: int, total: int) -> None:
    if done % 500 == 0 and done:
        say(f"{done} of {total}")


@data.command()
def crops(
    folders: Annotated[list[Path], typer.Argument(metavar="FACES...", help="Folders of pictures of bare faces.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the arrays are written.")],
) -> None:
    """Find the face in each picture and write its canonical crop and landmarks, for training."""
    from unmask.train.data import prepare_crops

    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"'{folder}' is not a folder; give folders of pictures")
    written, faceless = prepare_crops(folders, output, _progress)
    print(f"{written} crops in {output}, {faceless} pictures without a face")


@data.command()
def label(
    folders: Annotated[list[Path], typer.Argument(metavar="PICTURES...", help="Folders of pictures of masked faces.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the arrays are written.")],
    apart_from: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Pictures that must not be trained on: what looks like them is left out."),
    ] = None,
    device: _Device = "auto",
) -> None:
    """Label real masked faces with the present segmenter, to train the next one on what it is sure of."""
    from unmask.models.engine import choose, load
    from unmask.stream.stills import crops_of_faces
    from unmask.train.pseudo import label_pictures

    for folder in (*folders, *(apart_from or ())):
        if not folder.is_dir():
            raise UserError(f"'{folder}' is not a folder; give folders of pictures")
    engine = load("segmenter", choose(device))
    for what, count in label_pictures(engine, folders, apart_from or (), crops_of_faces, output, _progress).items():
        print(f"{what}: {count}")


@data.command()
def tracker(
    crops: Annotated[Path, typer.Argument(metavar="CROPS", help="Folder written by `unmask data crops`.")],
    scenes: Annotated[Path, typer.Option(metavar="DIR", help="Pictures with boxes.csv: file,label,x0,y0,x1,y1.")],
    textures: Annotated[Path, typer.Option(metavar="DIR", help="Mask pictures with masks.cfg.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the arrays are written.")],
    stills: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="Portraits of masked people.")] = None,
    variants: Annotated[int, typer.Option(metavar="N", min=1, help="How often each face is drawn.")] = 2,
) -> None:
    """Draw faces with masks and list real ones, to train the detector and the landmarker on."""
    from unmask.stream.stills import landmarks_of_faces
    from unmask.train.tracker_data import prepare_faces, prepare_scenes

    for folder in (scenes, textures, *(stills or ())):
        if not folder.is_dir():
            raise UserError(f"'{folder}' is not a folder; give folders of pictures")
    drawn = prepare_faces(crops, textures, output, variants, _progress)
    listed = prepare_scenes(scenes, stills or [], landmarks_of_faces, output, _progress)
    print(f"{drawn} drawn faces and {listed} real ones in {output}")


@train.command("detector")
def train_detector(config: _Config) -> None:
    """Train the network that finds faces."""
    _need_training_packages()
    from unmask.train import detector
    from unmask.train.config import Recipe, load_yaml

    detector.train(load_yaml(config, Recipe))


@train.command("landmarker")
def train_landmarker(config: _Config) -> None:
    """Train the network that gives the points of a face."""
    _need_training_packages()
    from unmask.train import landmarker
    from unmask.train.config import Recipe, load_yaml

    landmarker.train(load_yaml(config, Recipe))


@train.command("segmenter")
def train_segmenter(config: _Config) -> None:
    """Train the network that finds the mask."""
    _need_training_packages()
    from unmask.train import segmenter
    from unmask.train.config import Recipe, load_yaml

    segmenter.train(load_yaml(config, Recipe))


@train.command("inpainter")
def train_inpainter(config: _Config) -> None:
    """Train the network that paints the hidden part of the face."""
    _need_training_packages()
    from unmask.train import inpainter
    from unmask.train.config import Recipe, load_yaml

    inpainter.train(load_yaml(config, Recipe))


@evaluate.command("segmenter")
def evaluate_segmenter(
    labelled: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pairs image/NAME, mask/NAME of masked faces.")
    ] = None,
    bare: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Pictures or videos of faces without masks.")
    ] = None,
    crops: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Crops, of which the validation split is used.")
    ] = None,
    device: _Device = "auto",
    report: _Json = None,
) -> None:
    """Measure the segmenter: IoU and boundary on labelled masks, false alarms on bare faces."""
    from unmask.models.engine import choose, load
    from unmask.stream.stills import crop_of_portrait
    from unmask.train.data import FaceCrops
    from unmask.train.evaluate import evaluate_bare, evaluate_labelled

    if labelled is None and not bare and crops is None:
        raise UserError("nothing to measure on: give --labelled, --bare or --crops")
    engine = load("segmenter", choose(device))
    figures: dict[str, dict[str, float]] = {}
    if labelled is not None:
        figures[f"labelled masks, {labelled.name}"] = evaluate_labelled(engine, labelled, crop_of_portrait, _progress)
    alarms = evaluate_bare(engine, bare or [], FaceCrops.open(crops) if crops else None)
    figures |= {f"bare faces, {name}": row for name, row in alarms.items()}
    _show(figures, report)


@evaluate.command("inpainter")
def evaluate_inpainter(crops: _Crops, device: _Device = "auto", report: _Json = None) -> None:
    """Measure the inpainter on the validation split, beside OpenCV's Telea inpainting."""
    from unmask.models.engine import choose, load
    from unmask.train import evaluate as measure
    from unmask.train.data import FaceCrops

    engine = load("inpainter", choose(device))
    _show({"validation faces": measure.evaluate_inpainter(engine, FaceCrops.open(crops), _progress)}, report)


def export(
    network: Annotated[str, typer.Argument(metavar="segmenter|inpainter|detector|landmarker")],
    checkpoint: Annotated[Path, typer.Argument(metavar="STATE.pt", help="Checkpoint of a training run.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where both files are written.")],
) -> None:
    """Write the averaged weights of a run as NAME.safetensors and NAME.onnx."""
    _need_training_packages()
    import torch

    from unmask.models.export import ship
    from unmask.models.runtime import RUNTIMES

    if network not in RUNTIMES:
        raise UserError(f"unknown network '{network}': use {', '.join(RUNTIMES)}")
    if not checkpoint.is_file():
        raise UserError(f"no checkpoint '{checkpoint}': give the state.pt of a training run")
    if not output.is_dir():
        raise UserError(f"'{output}' is not a folder")
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    for path in ship(network, state["ema"], output):
        print(path)


def _show(figures: dict[str, dict[str, float]], report: Path | None) -> None:
    for name, row in figures.items():
        print(name)
        for figure, value in row.items():
            print(f"  {figure:22} {value:.4f}" if isinstance(value, float) else f"  {figure:22} {value}")
    if report is not None:
        report.write_text(json.dumps(figures, indent=2) + "\n")
