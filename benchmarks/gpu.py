"""Everything that is to be measured on an NVIDIA GPU, in one command.

    python benchmarks/gpu.py [--device cuda:0|cpu] [--report benchmarks/results/NAME.json] [--repeats 200]

Without a GPU it runs as far as it can, and says what it left out and why. What fails does not keep the rest from being
measured; the report is written anew after each measurement, with the reason in place of figures that there are none of.

Networks: milliseconds for 1, 2, 4 and 8 faces, from arrays in the processor's memory to arrays there, copies included,
in PyTorch (float32, half precision, torch.compile, a CUDA graph), Torch-TensorRT, TensorRT and OpenVINO; build time;
agreement with PyTorch in float32 on real crops (the worst one, dB; `unmask` refuses less than 35).
Frames: milliseconds to cut out and paste faces in a 1080p frame that lies in a tensor, and to bring it there and back.
Pipeline: frames per second of a 1080p clip through every stage but the encoder, and with it.

A Python that has TensorRT but neither PyTorch nor OpenVINO measures TensorRT alone: write the inputs, and what float32
makes of them, where PyTorch is (`--reference crops.npz`), and give the same file there, with `PYTHONPATH=src`.
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import shlex
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
Figures = dict[str, Any]
BATCHES: Final = (1, 2, 4, 8)
WARM_UP: Final = 10


def has(*modules: str) -> bool:
    """Whether all modules are installed."""
    return all(importlib.util.find_spec(module) for module in modules)


class Nothing(types.ModuleType):
    """Stands in for a module of which only types are named: each name is there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


if not has("openvino"):
    # `unmask.models.engine` and what it imports name OpenVINO's types; TensorRT alone needs none of them.
    vino = types.ModuleType("unmask.models.vino")
    vino.openvino = Nothing("openvino")  # type: ignore[attr-defined]
    sys.modules["unmask.models.vino"] = vino

from unmask.models.engine import NETWORKS, Engine, NetworkName, weights_file  # noqa: E402


class Skip(Exception):  # noqa: N818 - not an error
    """Something cannot be measured here; the message says why."""


def attempt(measure: Callable[[], Figures]) -> Figures:
    """What was measured, or why it was not: one fault must not take along what an hour on a GPU has brought."""
    try:
        return measure()
    except Skip as reason:
        return {"skipped": str(reason)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"}


# --- what is compared -------------------------------------------------------------------------------------------------


def torch_variant(network: NetworkName, device: str, how: str) -> Engine:
    """The network under PyTorch in half precision: "eager", "compile" or "graph"."""
    import torch

    from unmask.models.folding import fold_norms
    from unmask.models.runtime import load_runtime

    if device == "cpu":
        raise Skip("PyTorch in half precision is for GPUs")
    runtime = load_runtime(network, weights_file(f"{network}.safetensors"))
    fold_norms(runtime)
    runtime = runtime.half().to(device)
    compiled = torch.compile(runtime) if how == "compile" else runtime

    class Variant(Engine):
        description = f"PyTorch {torch.__version__}, half precision, {how}"

        def __init__(self) -> None:
            self._graphs: dict[int, tuple[Any, list[Any], Any]] = {}

        def __call__(self, *inputs: U8) -> U8:
            with torch.inference_mode():
                tensors = [torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in inputs]
                result: U8 = (self._replay(tensors) if how == "graph" else compiled(*tensors)).cpu().numpy()
                return result

        def _replay(self, tensors: list[Any]) -> Any:
            count = len(tensors[0])
            if count not in self._graphs:
                given = [x.clone() for x in tensors]
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(3):
                        runtime(*given)
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    out = runtime(*given)
                self._graphs[count] = graph, given, out
            graph, given, out = self._graphs[count]
            for mine, tensor in zip(given, tensors, strict=True):
                mine.copy_(tensor)
            graph.replay()
            return out

    return Variant()


def tensorrt_engine(network: NetworkName, device: str) -> Engine:
    """TensorRT, by the classes that `unmask` uses, built anew."""
    if not has("tensorrt"):
        raise Skip("tensorrt is not installed (pip install 'unmask[gpu]')")
    if device == "cpu":
        raise Skip("TensorRT needs an NVIDIA GPU")
    from unmask.models.engines.build import build_plan
    from unmask.models.engines.device import open_device
    from unmask.models.engines.runtime import TensorRtEngine

    tensorrt = importlib.import_module("tensorrt")
    gpu = open_device(int(device.partition(":")[2] or 0))
    gpu.activate()
    onnx = weights_file(f"{network}.onnx").read_bytes()
    plans = {batch: build_plan(tensorrt, onnx, batch) for batch in BATCHES}
    return TensorRtEngine(tensorrt, plans, gpu, f"TensorRT {tensorrt.__version__} on {gpu.name}, half precision")


def torch_tensorrt_engine(network: NetworkName, device: str) -> Engine:
    """Torch-TensorRT, as `unmask` uses it, built anew."""
    if not has("torch", "torch_tensorrt"):
        raise Skip("torch-tensorrt is not installed (pip install 'unmask[torch-tensorrt]')")
    if device == "cpu":
        raise Skip("Torch-TensorRT needs an NVIDIA GPU")
    from unmask.models.engines.torch_runtime import TorchTensorRtEngine, build_program, load_program

    programs = {batch: load_program(build_program(network, batch, device)) for batch in BATCHES}
    return TorchTensorRtEngine(programs, device, "Torch-TensorRT, half precision")


def openvino_engine(network: NetworkName, device: str) -> Engine:
    """OpenVINO on the processor, for comparison."""
    if not has("openvino"):
        raise Skip("openvino is not installed")
    from unmask.models.engine import OpenVinoEngine

    return OpenVinoEngine(network)


def eager(network: NetworkName, device: str) -> Engine:
    """PyTorch in float32, operation by operation."""
    from unmask.models.engine import TorchEngine

    return TorchEngine(network, device)


def engines() -> Iterator[tuple[str, Callable[[NetworkName, str], Engine]]]:
    """What is compared, by name."""
    if has("torch"):
        yield "PyTorch, float32", eager
        for how in ("eager", "compile", "graph"):
            yield f"PyTorch, half, {how}", lambda network, device, how=how: torch_variant(network, device, how)
    yield "Torch-TensorRT", torch_tensorrt_engine
    yield "TensorRT", tensorrt_engine
    yield "OpenVINO", openvino_engine


# --- networks ---------------------------------------------------------------------------------------------------------


def reference(file: Path | None) -> dict[str, U8]:
    """Real inputs of each network and what float32 makes of them, by "network/0", "network/1" and "network/out".

    Taken from the file where it is there, otherwise computed, and written to it.
    """
    if file is not None and file.exists():
        with np.load(file) as stored:
            return {name: np.asarray(stored[name], np.uint8) for name in stored.files}
    if not has("torch", "cv2", "safetensors"):
        raise SystemExit("PyTorch is not installed: give a file that was written where it is with --reference")
    from unmask.models.engines.parity import MOST_CROPS, inputs_for, reference_engine

    found: dict[str, U8] = {}
    for network in NETWORKS:
        inputs = inputs_for(network, MOST_CROPS)
        found |= {f"{network}/{position}": value for position, value in enumerate(inputs)}
        found[f"{network}/out"] = reference_engine(network)(*inputs).copy()
    if file is not None:
        np.savez_compressed(file, **found)  # type: ignore[arg-type]
    return found


def agreement_db(network: NetworkName, given: U8, known: dict[str, U8]) -> float:
    """PSNR of the worst crop; of the inpainter, only what it paints counts."""
    error = (given.astype(np.float64) - known[f"{network}/out"]) ** 2
    parts = [e[m > 0] for e, m in zip(error, known[f"{network}/1"], strict=True)] if network == "inpainter" else error
    return float(min(99.0, 10 * np.log10(255.0**2 / max(1e-12, *(float(part.mean()) for part in parts)))))


def measure_network(engine: Engine, network: NetworkName, known: dict[str, U8], repeats: int) -> Figures:
    """Agreement, and the time of a call by faces."""
    inputs = [known[f"{network}/{position}"] for position in range(2) if f"{network}/{position}" in known]
    figures: Figures = {"engine": engine.description, "agreement_db": agreement_db(network, engine(*inputs), known)}
    for count in BATCHES:
        batch = [np.ascontiguousarray(x[:count]) for x in inputs]
        figures[str(count)] = timed(lambda batch=batch: engine(*batch), repeats)  # type: ignore[misc]
    return figures


def timed(work: Callable[[], object], repeats: int) -> Figures:
    """Milliseconds of a call: p50 and p95. The call must wait for its result."""
    for _ in range(min(WARM_UP, repeats)):
        work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    p50, p95 = np.percentile(np.array(seconds) * 1000, [50, 95])
    return {"p50_ms": round(float(p50), 4), "p95_ms": round(float(p95), 4)}


def measure_networks(device: str, known: dict[str, U8], repeats: int) -> Iterator[tuple[str, Figures]]:
    """Every engine with every network; what cannot run gives its reason."""
    for name, make in engines():
        for network in NETWORKS:

            def figures(network: NetworkName = network, make: Callable[..., Engine] = make) -> Figures:
                began = time.perf_counter()
                engine = make(network, device)
                built = {"build_seconds": round(time.perf_counter() - began, 2)}
                return built | measure_network(engine, network, known, repeats)

            yield f"{network}, {name}", attempt(figures)


# --- frames and pipeline ----------------------------------------------------------------------------------------------


def measure_frames(device: str, repeats: int) -> Figures:
    """Cutting out and pasting in a 1080p frame that lies in a tensor, and bringing it there and back."""
    from fractions import Fraction

    from unmask.models.geometry import CROP_SIZE
    from unmask.stream.canvas import canvas_for
    from unmask.stream.frame import Frame, Layout
    from unmask.stream.nv12 import Mover, new_picture

    layout = Layout(1920, 1080, tensors=device)
    frame = Frame(0, 0, Fraction(1), layout, np.zeros(layout.slot_bytes(8), np.uint8), 0, nv12=new_picture(layout))
    canvas, mover = canvas_for(layout), Mover(layout)
    planes = [np.random.default_rng(1).integers(16, 235, shape, dtype=np.uint8) for shape in layout.plane_shapes]
    figures: Figures = {"upload": timed(lambda: mover.upload(frame, planes), repeats)}
    figures["download"] = timed(lambda: mover.download(frame), repeats)
    alpha = np.full((CROP_SIZE, CROP_SIZE), 255, np.uint8)
    for faces in (1, 4):
        zoom = 0.6
        maps = [np.array([[zoom, 0.02, -200.0 * i], [-0.02, zoom, -150.0]]) for i in range(faces)]
        crops = [(matrix, frame.face_pictures(i).crop) for i, matrix in enumerate(maps)]
        pasted = [(matrix, crop, alpha) for matrix, crop in crops]

        def both(crops: Any = crops, pasted: Any = pasted) -> None:
            canvas.crop_all(frame, crops)
            canvas.paste_all(frame, pasted)
            mover.wait()

        figures[f"crop and paste, {faces}"] = timed(both, repeats)
    return figures


def measure_pipeline(device: str, frames: int) -> Iterator[tuple[str, Figures]]:
    """A 1080p clip with one masked face through the stages, its frames in tensors."""
    from unmask.stream.bench.clip import write_clip
    from unmask.stream.encoders import EncodeOptions
    from unmask.stream.frame import Frame
    from unmask.stream.media import probe
    from unmask.stream.nv12 import with_tensors
    from unmask.stream.pipeline import Settings, build
    from unmask.stream.stage import Sink
    from unmask.stream.supervisor import run

    class Nowhere(Sink):
        name = "nowhere"

        def process(self, frame: Frame) -> tuple[Frame, ...]:
            return (frame,)

    with TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_clip(clip, 1920, 1080, 1, frames)
        source = with_tensors(probe(clip), device)
        options = EncodeOptions(gpu=device != "cpu")
        for name in ("up to the encoder", "with the encoder"):

            def figures(name: str = name) -> Figures:
                stages = build(source, Path(folder) / "out.mp4", Settings(device), options)
                stages = (*stages[:-1], Nowhere()) if name == "up to the encoder" else stages
                notices: list[str] = []
                report = run(stages, source.layout, on_notice=notices.append)
                return {
                    "fps": round(report.frames / (report.wall_seconds - report.open_seconds), 2),
                    "stages_ms": {stage: round(timing.mean_ms, 3) for stage, timing in report.stages.items()},
                    "summaries": report.summaries,
                    "notices": notices,
                }

            yield name, attempt(figures)


# --- one command ------------------------------------------------------------------------------------------------------


def about(device: str) -> Figures:
    """The machine and the versions."""
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for module in ("torch", "torch_tensorrt", "tensorrt", "openvino", "av", "cv2"):
        if has(module):
            try:
                versions[module] = str(importlib.import_module(module).__version__)
            except (ImportError, OSError, RuntimeError) as error:
                versions[module] = f"cannot be imported: {(str(error).splitlines() or [''])[0]}"
    gpu = {"gpu": "none"} if device == "cpu" else attempt(lambda: use(device))
    return gpu | {"system": platform.platform(), "versions": versions}


def use(device: str) -> Figures:
    """Make a GPU the current one, which some of PyTorch's calls mean, and tell its name."""
    from unmask.models.engines.device import open_device

    opened = open_device(int(device.partition(":")[2] or 0))
    opened.activate()
    return {"gpu": f"{opened.name}, compute capability {opened.capability}"}


def usual_device() -> str:
    """The first GPU, or the processor where there is none."""
    from unmask.models.engines.device import device_problem

    problem = device_problem(0)
    if problem:
        print(f"no GPU: {problem}; what can run on the processor does")
    return "cpu" if problem else "cuda:0"


class Report:
    """All figures, printed and written down as they come.

    Args:
        file: where to; None to print them only.
        found: what is known at the beginning.
    """

    def __init__(self, file: Path | None, **found: Any) -> None:
        self._file = file
        self._found: Figures = found

    def add(self, part: str, figures: Figures, case: str = "") -> None:
        """Note the figures of a part, or of one case of it."""
        if case:
            self._found.setdefault(part, {})[case] = figures
        else:
            self._found[part] = figures
        print(f"{part}{case and f', {case}'}: {json.dumps(figures, default=str)}", flush=True)
        self._write()

    def add_all(self, part: str, cases: Callable[[], Iterator[tuple[str, Figures]]]) -> None:
        """Note the figures of each case of a part, and what goes wrong between them."""

        def measure() -> Figures:
            for case, figures in cases():
                self.add(part, figures, case)
            return {}

        if trouble := attempt(measure):
            self.add(part, trouble, "the rest")

    def _write(self) -> None:
        """In one step: whoever ends this command finds the report before the last figures, or with them, whole."""
        if self._file is None:
            return
        draft = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        try:
            draft.write_text(json.dumps(self._found, indent=2, default=str) + "\n")
            draft.replace(self._file)
        except OSError as error:
            print(f"{self._file} cannot be written: {error.strerror}", flush=True)


def run_all(arguments: argparse.Namespace) -> None:
    """All measurements."""
    device = arguments.device or usual_device()
    device = "cuda:0" if device == "cuda" else device
    report = Report(arguments.report, command=shlex.join(sys.argv), device=device)
    report.add("machine", about(device))
    repeats = arguments.repeats
    report.add_all("networks", lambda: measure_networks(device, reference(arguments.reference), repeats))
    if has("torch", "cv2", "av", "openvino"):
        report.add("frames", attempt(lambda: measure_frames(device, repeats)))
        report.add_all("pipeline", lambda: measure_pipeline(device, arguments.frames))
        return
    for part in ("frames", "pipeline"):
        report.add(part, {"skipped": "torch, cv2, av and openvino are not all installed"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cuda:N or cpu; the first GPU where there is one")
    parser.add_argument("--report", type=Path, help="write all figures as JSON")
    parser.add_argument("--reference", type=Path, help="inputs and results of float32, read, or written where absent")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--frames", type=int, default=300, help="length of the clip")
    arguments = parser.parse_args()
    if arguments.report is not None:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
    run_all(arguments)


if __name__ == "__main__":
    main()
