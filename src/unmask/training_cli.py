"""The commands of the training ground: data, training, evaluation, export. Imported as lazily as those of `cli`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.errors import UnmaskError, UserError
from unmask.progress import counting, say

if TYPE_CHECKING:
    from torch import Tensor

    from unmask.train.config import Recipe

data = typer.Typer(help="Prepare training data.", no_args_is_help=True)
evaluate = typer.Typer(help="Measure the networks, as users run them.", no_args_is_help=True)

_Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where the network runs.")]
_Crops = Annotated[Path, typer.Option(metavar="DIR", help="Folder written by `unmask data crops`.")]
_Json = Annotated[Path | None, typer.Option("--report", metavar="FILE.json", help="Write the figures as JSON too.")]


def _need_training_packages() -> None:
    from unmask.train.files import missing_packages

    if missing := missing_packages():
        raise UserError(f"training needs {', '.join(missing)}: pip install 'unmask[train]'")


@data.command()
def crops(
    folders: Annotated[list[Path], typer.Argument(metavar="FACES...", help="Folders of pictures of bare faces.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the arrays are written.")],
    landmarks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CelebA's list of five points: which face is meant."),
    ] = None,
) -> None:
    """Find the face in each picture and write its canonical crop and landmarks, for training."""
    from unmask.train.data import prepare_crops

    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"'{folder}' is not a folder; give folders of pictures")
    with counting("pictures") as progress:
        written, faceless = prepare_crops(folders, output, progress, landmarks, say)
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
    with counting("pictures") as progress:
        counts = label_pictures(engine, folders, apart_from or (), crops_of_faces, output, progress, say)
    _print_counts(counts)


@data.command()
def loops(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Folder written by `unmask data label`.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the arrays are written.")],
    lines: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ear loops drawn by hand: file,x,y,width,points, px of the pictures."),
    ] = None,
    pictures: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="Where those pictures lie.")] = None,
    device: _Device = "auto",
) -> None:
    """Add the ear loops that the present segmenter sees to labels of another one.

    Name a folder with a segmenter that was taught ear loops in UNMASK_WEIGHTS.
    """
    from unmask.models.engine import choose, load
    from unmask.stream.stills import crops_of_faces
    from unmask.train.loop_lines import label_lined, read_lines
    from unmask.train.pseudo import Lined, PseudoLabels, add_loops

    known, names = PseudoLabels.open(labels), PseudoLabels.names(labels)
    if output.resolve() == labels.resolve():
        raise UserError("--output is LABELS itself; give another folder")
    listed = read_lines(lines) if lines else []
    engine, lined = load("segmenter", choose(device)), Lined([], [], [])
    if listed:
        with counting("faces") as progress:
            lined = label_lined(engine, listed, pictures or [], crops_of_faces, progress)
    with counting("pictures") as progress:
        found = add_loops(engine, known, names, lined, output, progress)
    print(f"labels in {output}: {len(lined.names)} faces by hand, {found} others with ear loops")


@data.command()
def tracker(
    crops: Annotated[Path, typer.Argument(metavar="CROPS", help="Folder written by `unmask data crops`.")],
    scenes: Annotated[Path, typer.Option(metavar="DIR", help="Pictures with boxes.csv: file,label,x0,y0,x1,y1.")],
    textures: Annotated[Path, typer.Option(metavar="DIR", help="Mask pictures with masks.cfg.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the arrays are written.")],
    stills: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="Portraits of masked people.")] = None,
    more_labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Like boxes.csv, for what that leaves out; labels 'nothing', 'unknown' too."),
    ] = None,
    profiles: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Faces in profile whose points were marked by eye.")
    ] = None,
    variants: Annotated[int, typer.Option(metavar="N", min=1, help="How often each face is drawn.")] = 2,
) -> None:
    """Draw faces with masks and list real ones, to train detector and landmarker."""
    from unmask.stream.stills import landmarks_of_faces
    from unmask.train.files import whole_files
    from unmask.train.profiles import fit_profiles
    from unmask.train.tracker_data import SCENES, prepare_faces, prepare_scenes, read_labels

    for folder in (scenes, textures, *(stills or ())):
        if not folder.is_dir():
            raise UserError(f"'{folder}' is not a folder; give folders of pictures")
    read_labels(scenes, more_labels)  # what is wrong with them is said now, not after hours of drawing
    fitted = fit_profiles(profiles, crops) if profiles else {}
    with whole_files(output, SCENES) as draft:
        with counting("faces") as progress:
            drawn = prepare_faces(crops, textures, draft, variants, progress)
        with counting("pictures") as progress:
            listed = prepare_scenes(scenes, stills or [], landmarks_of_faces, draft, progress, more_labels, fitted, say)
    print(f"{drawn} drawn faces and {listed} real ones in {output}")


@data.command()
def ages(
    crops: Annotated[Path, typer.Argument(metavar="CROPS", help="Folder written by `unmask data crops`.")],
    labels: Annotated[Path, typer.Option(metavar="FILE.csv", help="Lines picture,years of some of them.")],
    efficientnet: Annotated[Path, typer.Option(metavar="FILE", help="Weights of an EfficientNet-Lite.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="safetensors, for age_weights.")],
) -> None:
    """Learn from some faces to tell how old a lower face looks, for the loss `age`."""
    _need_training_packages()
    import numpy as np

    from unmask.train.ages import fit_age_head, read_ages
    from unmask.train.data import FaceCrops
    from unmask.train.efficientnet import EfficientNet

    head, labelled, said = fit_age_head(EfficientNet(efficientnet), FaceCrops.open(crops), read_ages(labels))
    output.parent.mkdir(parents=True, exist_ok=True)
    head.save(output)
    error = float(np.abs(said - labelled).mean()) if len(said) else float("nan")
    print(f"{output}: {error:.1f} years wrong on average, {len(said)} validation faces")


@data.command()
def masks(
    faces: Annotated[Path, typer.Argument(metavar="FACES", help="Folder of pictures of bare faces.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the pairs are written.")],
    kinds: Annotated[str, typer.Option(metavar="KIND=SHARE,...", help="Kinds of masks and how many of each.")] = (
        "surgical=0.4,n95=0.2,cloth=0.4"
    ),
    region: Annotated[
        str,
        typer.Option(
            metavar="lower-face|mouth|nose|eyes|left|right|freeform", help="Hide a part of the face, no mask."
        ),
    ] = "",
    size: Annotated[
        int, typer.Option(metavar="PX", min=0, help="Write aligned crops of this size; 0: whole pictures.")
    ] = 0,
    seed: Annotated[int, typer.Option(metavar="N", help="Another one gives other masks.")] = 0,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures at a time.")] = 2,
) -> None:
    """Write pairs for training: each face with a mask, the mask, the face as it was, its landmarks.

    The same pictures, seed and options give the same pairs. An interrupted call goes on where it stopped; with other
    options it needs another folder.
    """
    from unmask.train.dataset import MaskOptions, make_pairs

    if not faces.is_dir():
        raise UserError(f"'{faces}' is not a folder; give a folder of pictures")
    shares = {}
    for part in kinds.split(","):
        kind, _, share = part.strip().partition("=")
        try:
            shares[kind] = float(share or 1)
        except ValueError:
            raise UserError(f"--kinds: '{part}' is not KIND=SHARE, such as surgical=0.5") from None
    with counting("pictures") as progress:
        counts = make_pairs(faces, output, MaskOptions(shares, region, seed, size, workers), progress, say)
    _print_counts(counts)


@data.command()
def frames(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Videos of one person's bare face.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where pictures and sound go.")],
    fps: Annotated[float, typer.Option(metavar="N", min=0.01, help="Pictures kept of each second, the sharpest.")] = 1,
    size: Annotated[int, typer.Option(metavar="PX", min=32, help="Width and height of the aligned crops.")] = 512,
    alike: Annotated[
        float,
        typer.Option(metavar="0..1", min=0, max=1, help="Of two frames more alike the sharper is kept."),
    ] = 0.985,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace pictures and sound of these videos that exist.")
    ] = False,
) -> None:
    """A person's own data set from video: aligned crops of the sharpest frames, no picture twice, the sound as WAV."""
    from unmask.train.dataset import extract_frames

    with counting("videos") as progress:
        counts = extract_frames(videos, output, fps, size, progress, alike, overwrite=overwrite)
    _print_counts(counts)


@data.command()
def paired(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With pairs image/NAME and mask/NAME (0 and 255).")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the arrays are written.")],
) -> None:
    """Read labelled pictures of masked faces as `unmask data label` writes them, for a recipe's real."""
    from unmask.stream.stills import crop_of_portrait
    from unmask.train.pseudo import write_labelled

    print(f"crops: {write_labelled(folder, crop_of_portrait, output)}")


@data.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures to look at.")],
    against: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The other split: pictures that both have are leaks.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.jpg", help="Write a contact sheet.")] = None,
) -> None:
    """Find what is wrong with a folder of pictures: broken files, the same picture twice, leaks between splits.

    Exit code 1 where something is wrong.
    """
    _need_training_packages()
    from unmask.train.dataset import check_pictures
    from unmask.train.sheets import write_sheet

    for given in (folder, against):
        if given is not None and not given.is_dir():
            raise UserError(f"'{given}' is not a folder; give a folder of pictures")
    with counting("pictures") as progress:
        found = check_pictures(folder, against, progress)
    print(f"pictures: {found.pictures}")
    for size, count in sorted(found.sizes.items(), key=lambda pair: -pair[1])[:10]:
        print(f"  {size}: {count}")
    if len(found.sizes) > 10:
        print(f"  and {len(found.sizes) - 10} others")
    for name in found.broken:
        print(f"broken: {name}")
    for group in found.duplicates:
        print(f"the same: {', '.join(group)}")
    for name in found.leaks:
        print(f"in {against} too: {name}")
    if sheet is not None:
        write_sheet(sheet, found.sheet)
    wrong = len(found.broken) + len(found.duplicates) + len(found.leaks)
    print(f"{wrong} problems" if wrong else "nothing wrong")
    raise typer.Exit(int(wrong > 0))


def _print_counts(counts: dict[str, int]) -> None:
    for what, count in counts.items():
        print(f"{what}: {count}")


_Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of one that ships.")]
_Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Other values, such as phases.0.lr=1e-4.")
]
_Tracking = Annotated[str | None, typer.Option(metavar="URI", help="MLflow server; default: a folder beside the run.")]


def _recipe(name: str, overrides: list[str] | None, tracking_uri: str | None = None, *, alone: bool = True) -> "Recipe":
    _need_training_packages()
    from unmask.train.config import load_recipe
    from unmask.train.processes import is_launched

    if alone and is_launched():
        raise UserError("torchrun is for `unmask train`; run this command without it")
    tracked = [f"tracking_uri={tracking_uri}"] if tracking_uri else []
    return load_recipe(name, [*(overrides or ()), *tracked])


def train(recipe: _Recipe, overrides: _Overrides = None, tracking_uri: _Tracking = None) -> None:
    """Train a network. An interrupted run goes on where it stopped.

    On several GPUs: torchrun --nproc-per-node N --no-python unmask train RECIPE

    Writes the state, a log, sheets of samples and the recipe to the folder that the recipe names with out.
    """
    chosen = _recipe(recipe, overrides, tracking_uri, alone=False)
    import msgspec

    from unmask.train.processes import joined, rank
    from unmask.train.registry import trainer_of

    with joined(chosen.device) as device, counting("steps") as progress:
        trainer = trainer_of(msgspec.structs.replace(chosen, device=device))
        if rank() == 0:
            trainer.on_step = progress
        trainer.fit()


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
        with counting("pictures") as progress:
            row = evaluate_labelled(engine, labelled, crop_of_portrait, progress)
        figures[f"labelled masks, {labelled.name}"] = row
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
    with counting("faces") as progress:
        figures = measure.evaluate_inpainter(engine, FaceCrops.open(crops), progress)
    _show({"validation faces": figures}, report)


@evaluate.command("run")
def evaluate_training_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    instruments: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With loaders.py: networks that measure LPIPS and identity.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.jpg", help="Write masked, mask over picture, result, truth.")
    ] = None,
    most: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures at most.")] = 500,
    crops: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Crops to measure on, all of them, instead of its validation.")
    ] = None,
    report: _Json = None,
) -> None:
    """Measure a training run on its validation pictures: Dice, IoU, PSNR, SSIM, MSE, LPIPS, identity."""
    _need_training_packages()
    from unmask.train.evaluate_run import evaluate_run
    from unmask.train.instruments import Instruments
    from unmask.train.sheets import write_sheet

    if instruments is not None and not (instruments / "loaders.py").is_file():
        raise UserError(f"'{instruments}' holds no loaders.py; without --instruments LPIPS and identity are left out")
    judges = Instruments(instruments) if instruments else None
    with counting("pictures") as progress:
        figures, picture = evaluate_run(run, judges, progress, most=most, crops=crops)
    if sheet is not None:
        write_sheet(sheet, picture)
    _show({str(run): figures}, report)


def export(
    network: Annotated[str, typer.Argument(metavar="segmenter|inpainter|detector|landmarker")],
    checkpoints: Annotated[list[Path], typer.Argument(metavar="STATE.pt...", help="Checkpoints of training runs.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where both files are written.")],
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="For 8-bit integers on processors: crops (segmenter, inpainter), or what `unmask data tracker` wrote.",
        ),
    ] = None,
) -> None:
    """Write the averaged weights of a run as NAME.safetensors and NAME.onnx.

    Of several runs that went on from the same weights, their mean is written.
    """
    _need_training_packages()
    from unmask.models.export import mean_of, ship
    from unmask.models.runtime import RUNTIMES
    from unmask.train.calibration import calibration_pictures

    if network not in RUNTIMES:
        raise UserError(f"unknown network '{network}': use {', '.join(RUNTIMES)}")
    if not output.is_dir():
        raise UserError(f"'{output}' is not a folder")
    pictures = None if calibrate is None else calibration_pictures(network, calibrate)
    state = mean_of([_averaged_weights(network, checkpoint) for checkpoint in checkpoints])
    for path in ship(network, state, output, pictures):
        print(path)


def _averaged_weights(network: str, checkpoint: Path) -> "dict[str, Tensor]":
    from unmask.train.loop import read_state

    if not checkpoint.is_file():
        raise UserError(f"no checkpoint '{checkpoint}': give the state.pt of a training run")
    state = read_state(checkpoint)
    trained, sizes = state.get("network", network), state.get("recipe", {}).get("sizes", {})
    trained = "segmenter" if trained in ("ear-loops", "more-masks") else trained  # parts of it
    if trained != network or sizes:
        what = f"the {trained} of another size" if trained == network else f"the model {trained}"
        raise UserError(f"'{checkpoint}' holds {what}; only the {network} of the usual size can be exported as one")
    weights: dict[str, Tensor] = state["ema"]
    return weights


def _show(figures: dict[str, dict[str, float]], report: Path | None) -> None:
    for name, row in figures.items():
        print(name)
        for figure, value in row.items():
            print(f"  {figure:22} {value:.4f}" if isinstance(value, float) else f"  {figure:22} {value}")
    if report is not None:
        report.write_text(json.dumps(figures, indent=2) + "\n")


@data.command()
def preview(
    recipe: _Recipe,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.jpg", help="The sheet.")],
    overrides: _Overrides = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Another one gives another batch.")] = 0,
) -> None:
    """Draw a batch as the network gets it: masks, light and every augmentation of the recipe."""
    chosen = _recipe(recipe, overrides)
    from unmask.train.campaign import preview_sheet
    from unmask.train.sheets import write_sheet

    write_sheet(output, preview_sheet(chosen, seed))
    print(output)


def overfit(
    recipe: _Recipe,
    overrides: _Overrides = None,
    pictures: Annotated[int, typer.Option(metavar="N", min=1, help="How many pictures are learnt by heart.")] = 4,
    steps: Annotated[int, typer.Option(metavar="N", min=10, help="Optimizer steps.")] = 300,
) -> None:
    """Learn a few pictures by heart: the check that a network and its losses can learn at all. Exit code 1 if not."""
    chosen = _recipe(recipe, overrides)
    from unmask.train import campaign

    result = campaign.overfit(chosen, pictures, steps, say)
    print(f"loss {result.first:.4f} at first, {result.last:.4f} after {steps} steps")
    if not result.learnt:
        raise UnmaskError("it did not learn its few pictures by heart: try more --steps, then look at the losses")


def crossval(
    recipe: _Recipe,
    overrides: _Overrides = None,
    folds: Annotated[int, typer.Option("-k", "--folds", metavar="K", min=2, help="Into how many parts.")] = 5,
) -> None:
    """Train K times, each time with another part of the pictures for validation."""
    chosen = _recipe(recipe, overrides)
    from unmask.train import campaign

    for name, row in campaign.crossval(chosen, folds, say).items():
        print(f"{name}: {row['mean']:.4f} +- {row['deviation']:.4f} over {folds} folds")


def tune(
    recipe: _Recipe,
    overrides: _Overrides = None,
    trials: Annotated[int, typer.Option(metavar="N", min=1, help="Trials in all, those of earlier calls too.")] = 20,
) -> None:
    """Search for better values of the keys that the recipe names under tune. Goes on where it stopped."""
    chosen = _recipe(recipe, overrides)
    from unmask.train import campaign

    result = campaign.tune(chosen, trials, say)
    print(
        f"best of {result['trials']} trials ({result['pruned']} pruned): {result['value']:.4f}, number {result['best']}"
    )
    for key, value in result["settings"].items():
        print(f"  {key}={value}")


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of training runs.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.html", help="The report; .svg and .png: its curves alone.")
    ] = Path("runs.html"),
) -> None:
    """Compare runs: one HTML file with figures, what differs, curves and samples."""
    _need_training_packages()
    from unmask.train.compare import write_curves, write_report

    if output.suffix not in {".html", ".svg", ".png"} or not output.resolve().parent.is_dir():
        raise UserError(f"'{output}' cannot be written: give a .html, .svg or .png in a folder that exists")
    (write_report if output.suffix == ".html" else write_curves)(runs, output)
    print(output)


def personalize(
    sources: Annotated[
        list[Path], typer.Argument(metavar="VIDEO|PHOTOS...", help="The person's bare face: files or folders.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.safetensors", help="The personal model.")],
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="More take longer and fit closer.")] = 600,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a personal model that exists.")] = False,
) -> None:
    """Make a personal model from photos or a video of someone's bare face. Use it with: unmask video --person FILE.

    The file holds pictures of the face, which are shown in place of its mask. From 8 on, a minute of video say, the
    inpainter learns the face, too. Ctrl-C stops it; nothing is written then.
    """
    from unmask.interrupts import STOPPED
    from unmask.stream.jobs import counted
    from unmask.stream.naming import shown, whole_file

    for source in sources:
        if not source.exists():
            raise UserError(f"'{source}' is not there; give videos, pictures or folders of the person's bare face")
    if output.suffix != ".safetensors" or not output.parent.is_dir():
        raise UserError(f"'{output}' cannot be written: give FILE.safetensors in a folder that exists")

    try:
        with whole_file(output, overwrite=overwrite) as draft, counting("steps") as progress:
            from unmask.train.personal import personalize as fit  # slow, and of no use where the output is refused

            done = fit(sources, draft.path, steps, progress, say)
            draft.keep_as(output, overwrite=overwrite)
    except KeyboardInterrupt as stopped:
        say("unmask: stopped; nothing was written")
        raise typer.Exit(STOPPED) from stopped
    verbs = ("wears", "was") if done.masked == 1 else ("wear", "were")
    masked = f" ({done.masked} more {verbs[0]} a mask and {verbs[1]} left out)" if done.masked else ""
    told = f"{shown(str(output))}: {done.size / 1e6:.2f} MB from {counted(done.faces, 'face')}{masked}, "
    told += counted(done.views, "view")
    if done.psnr is None:
        print(told)
        return
    before, after = done.psnr
    print(f"{told}; PSNR in the mask on {counted(done.held_out, 'other')} {before:.2f} dB before, {after:.2f} dB after")
    if after <= before:
        say("it did not get better: give more and sharper pictures of one person's bare face")
