"""Frames that stay on a GPU between decoder and encoder, on tensors of the processor; the tests marked `gpu` on one."""

import itertools
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from tolerances import CANVAS_MEAN, CANVAS_SHARE

from unmask.models.engine import cuda_problem, has_nvidia_gpu
from unmask.stream import nv12
from unmask.stream.bench.clip import write_clip
from unmask.stream.encoders import Choice, Codec, EncodeOptions, Encoder, VideoSettings
from unmask.stream.frame import Frame, Layout
from unmask.stream.jobs import VideoSettings as JobSettings
from unmask.stream.jobs import unmask_video
from unmask.stream.media import Orientation, probe
from unmask.stream.naming import Job
from unmask.stream.nv12 import (
    Mover,
    fill_upright,
    layout_problem,
    new_picture,
    planes_of,
    use_gpu,
    video_frame,
    with_tensors,
)
from unmask.stream.nvcodec import encoder_hardware, nvdec_problem, nvenc_problem, open_on_gpu
from unmask.stream.pipeline import Settings, build
from unmask.stream.stages.decode import fill, plane_views
from unmask.stream.supervisor import Cancel, RunReport, run

U8 = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 66, 38
FRAMES = 6


def random_picture() -> av.VideoFrame:
    rng = np.random.default_rng(5)
    planar = rng.integers(0, 256, (HEIGHT * 3 // 2, WIDTH), dtype=np.uint8)
    return av.VideoFrame.from_ndarray(planar, "yuv420p")


def frame_of(layout: Layout) -> Frame:
    nv12 = new_picture(layout) if layout.tensors else None
    return Frame(0, 0, Fraction(1, 25), layout, np.zeros(layout.slot_bytes(0), np.uint8), 0, nv12=nv12)


def test_what_goes_in_comes_out_to_the_bit() -> None:
    layout = Layout(WIDTH, HEIGHT, tensors="cpu")
    frame, mover = frame_of(layout), Mover(layout)
    planes = [view.copy() for view in plane_views(random_picture(), Layout(WIDTH, HEIGHT))]
    mover.upload(frame, planes)
    for plane, given in zip(planes, mover.download(frame), strict=True):
        np.testing.assert_array_equal(plane, given)


def test_the_encoder_gets_the_same_memory_layout_as_from_ffmpeg() -> None:
    """NVENC takes one address for both planes: the chroma must begin where the luma ends."""
    layout = Layout(WIDTH, HEIGHT, tensors="cpu")
    frame, mover, picture = frame_of(layout), Mover(layout), random_picture()
    mover.upload(frame, list(plane_views(picture, Layout(WIDTH, HEIGHT))))
    given = mover.for_encoder(frame)
    planes_of(frame)[0].zero_()  # the slot is used again while the encoder still reads
    np.testing.assert_array_equal(given.to_ndarray(), picture.reformat(format="nv12").to_ndarray())
    luma, chroma = (torch.from_dlpack(plane) for plane in given.planes)
    assert chroma.data_ptr() - luma.data_ptr() == HEIGHT * WIDTH
    assert luma.stride(0) == chroma.stride(0) == WIDTH


class _CudaPlane:
    """A plane of a CUDA picture with PyAV's signature and refusal (av/video/plane.py), in the processor's memory."""

    def __init__(self, samples: torch.Tensor) -> None:
        self._samples = samples

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, *, stream: int | None = None) -> object:
        if stream is not None:
            raise NotImplementedError("CUDA stream synchronization is not supported. Pass stream=None ...")
        return self._samples.__dlpack__()


def test_pictures_of_nvdec_are_taken_without_a_stream() -> None:
    frame, coded = frame_of(Layout(WIDTH, HEIGHT, tensors="cpu")), random_picture().reformat(format="nv12")
    planes = [_CudaPlane(torch.from_dlpack(plane)) for plane in coded.planes]
    picture: Any = SimpleNamespace(sw_format=SimpleNamespace(name="nv12"), planes=planes)
    Mover(frame.layout).adopt(frame, picture, Orientation())
    assert frame.nv12 is not None
    np.testing.assert_array_equal(frame.nv12.numpy(), coded.to_ndarray())


@pytest.fixture
def cuda_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """PyTorch with GPUs that write down what is asked of them; the current stream is not the default one."""
    calls: list[str] = []

    def stream(name: str) -> Callable[[object], SimpleNamespace]:
        return lambda device: SimpleNamespace(synchronize=lambda: calls.append(f"wait for {name} of {device}"))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(f"use {device}"))
    monkeypatch.setattr(torch.cuda, "current_stream", stream("the current stream"))
    monkeypatch.setattr(torch.cuda, "default_stream", stream("the default stream"))
    return calls


def test_ffmpeg_takes_the_context_that_pytorch_has_opened(
    cuda_calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The primary context with flags of its own, PyAV's default, it is refused once PyTorch uses it."""
    pytorchs = {"primary_ctx": "0", "current_ctx": "1"}
    of_encoder = encoder_hardware(1)
    assert (of_encoder.options, of_encoder.device_id, of_encoder.is_hw_owned) == (pytorchs, 1, True)
    opened: list[Any] = []
    monkeypatch.setattr(av, "open", lambda *_, hwaccel, **__: opened.append(hwaccel))
    open_on_gpu(tmp_path / "clip.mp4", 1, owned=True)
    assert (opened[0].options, opened[0].device_id, opened[0].is_hw_owned) == (pytorchs, 1, True)
    # It is the context of that GPU that is the current one of this thread.
    assert cuda_calls == ["use cuda:1", "wait for the current stream of cuda:1"] * 2
    open_on_gpu(tmp_path / "clip.mp4", 1)  # pictures that are copied may come from a context of their own
    assert opened[1].options == {}
    assert len(cuda_calls) == 4


def test_pictures_for_nvenc_share_one_context(cuda_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Picture(torch.Tensor):
        is_cuda = True  # type: ignore[assignment]
        device = SimpleNamespace(index=3)  # type: ignore[assignment]

    monkeypatch.setattr(nv12, "VideoFrame", SimpleNamespace(from_dlpack=lambda *_, **with_: given.append(with_)))
    for _ in range(2):
        video_frame(torch.zeros((6, 4), dtype=torch.uint8).as_subclass(Picture))
    first, second = (with_["cuda_context"] for with_ in given)
    assert first is second
    assert (first.device_id, first.primary_ctx, first.current_ctx) == (3, False, True)
    video_frame(torch.zeros((6, 4), dtype=torch.uint8))
    assert given[2]["cuda_context"] is None


def test_what_the_decoder_queued_is_waited_for_on_another_stream_only(
    cuda_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(WIDTH, HEIGHT, tensors="cpu")
    mover = Mover(layout)
    monkeypatch.setattr(mover, "_on_gpu", True)
    mover._follow_decoder()
    assert cuda_calls == ["wait for the default stream of cpu"]
    monkeypatch.setattr(torch.cuda, "default_stream", default := lambda device: "the same")
    monkeypatch.setattr(torch.cuda, "current_stream", default)
    mover._follow_decoder()
    assert len(cuda_calls) == 1


def test_without_a_gpu_none_is_used(cuda_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    use_gpu("cuda:0")  # FFmpeg, which is asked next, says why it cannot
    assert cuda_calls == []


@pytest.mark.parametrize("turns", list(itertools.product([False, True], repeat=3)))
def test_decoded_pictures_are_made_upright_as_on_the_processor(turns: tuple[bool, bool, bool]) -> None:
    orientation, picture = Orientation(*turns), random_picture()
    size = (HEIGHT, WIDTH) if orientation.transpose else (WIDTH, HEIGHT)
    ours, theirs = frame_of(Layout(*size)), frame_of(Layout(*size, tensors="cpu"))
    fill(ours, picture, orientation)
    fill_upright(theirs, *(torch.from_dlpack(p) for p in picture.reformat(format="nv12").planes), orientation)
    for plane, other in zip(ours.planes, planes_of(theirs), strict=True):
        np.testing.assert_array_equal(plane, other.numpy())


def test_a_picture_of_another_size_is_scaled() -> None:
    frame = frame_of(Layout(2 * WIDTH, 2 * HEIGHT, tensors="cpu"))
    luma = torch.full((HEIGHT, WIDTH), 90, dtype=torch.uint8)
    chroma = torch.full((HEIGHT // 2, WIDTH // 2, 2), 140, dtype=torch.uint8)
    fill_upright(frame, luma, chroma, Orientation())
    assert [int(plane.unique()) for plane in planes_of(frame)] == [90, 140, 140]


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (Layout(64, 48, "yuv420p10le"), "8-bit 4:2:0 .* yuv420p10le"),
        (Layout(63, 48), "even sizes .* 63x48"),
        (Layout(64, 48, keep_source=True), "side by side"),
    ],
)
def test_what_cannot_stay_on_the_gpu_is_said(layout: Layout, says: str) -> None:
    assert re.search(says, layout_problem(layout) or "")
    with pytest.raises(ValueError, match="8-bit 4:2:0 of even size"):
        Layout(layout.width, layout.height, layout.format, keep_source=layout.keep_source, tensors="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nv12") / "masked.mp4"
    write_clip(path, 640, 360, faces=1, frames=FRAMES)
    return path


def through(clip: Path, output: Path, tensors: str, gpu: int | None = None) -> tuple[RunReport, list[str], U8]:
    """Take the masks off a clip, its frames in tensors or not. The pictures are (FRAMES, 540, 640) uint8, as coded."""
    source = probe(clip)
    source = with_tensors(source, tensors) if tensors else source
    notices: list[str] = []
    settings = Settings("cpu" if gpu is None else f"cuda:{gpu}")
    stages = build(source, output, settings, EncodeOptions(crf=1, gpu=gpu is not None))
    report = run(stages, source.layout, on_notice=notices.append)
    with av.open(str(output)) as container:
        pictures = [picture.to_ndarray(format="yuv420p") for picture in container.decode(video=0)]
    return report, notices, np.stack(pictures)


def test_a_whole_video_through_tensors_is_the_video_without_them(clip: Path, tmp_path: Path) -> None:
    expected, _, ours = through(clip, tmp_path / "slots.mp4", "")
    report, notices, theirs = through(clip, tmp_path / "tensors.mp4", "cpu")
    assert report.frames == FRAMES
    assert report.summaries["segment"]["masks_removed"] == expected.summaries["segment"]["masks_removed"] == FRAMES
    assert notices == ["frames are copied from cpu: libx264 encodes on the processor"]
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.mean() < CANVAS_MEAN
    assert (difference > 4).mean() < CANVAS_SHARE


def test_processes_share_no_tensors(clip: Path, tmp_path: Path) -> None:
    source = with_tensors(probe(clip), "cpu")
    stages = build(source, tmp_path / "out.mp4", Settings("cpu"), EncodeOptions())
    with pytest.raises(ValueError, match="processes share no tensors"):
        run(stages, source.layout, processes=True)


class _Silent:
    """Nobody watches."""

    def started(self, job: Job, frames: int | None) -> None:
        pass

    def progress(self, frames: int, seconds: float) -> None:
        pass

    def notice(self, line: str) -> None:
        pass


def test_each_end_falls_back_alone_and_says_so(clip: Path, tmp_path: Path) -> None:
    """With the errors that a machine without a driver really raises."""
    if has_nvidia_gpu():
        pytest.skip("this machine has an NVIDIA driver")
    job = Job(clip, tmp_path / "out.mp4")
    settings = JobSettings(Settings("cpu"), EncodeOptions(gpu=True))
    done = unmask_video(job, settings, _Silent(), Cancel())
    assert done.frames == FRAMES
    assert (done.decoder, done.encoder, done.frames_on) == ("CPU", "libx264", "cpu")
    memory, decoder, encoder = (
        next(line for line in done.notices if line.startswith(start)) for start in ("frames", "decoder", "encoder")
    )
    assert memory == f"frames pass through the processor's memory: {cuda_problem()}"
    assert decoder == "decoder on the CPU; NVDEC cannot decode this h264 (Operation not permitted)"
    assert encoder.startswith("encoder libx264; h264_nvenc does not open")


def test_nvenc_without_a_driver_says_why_it_takes_no_pictures_of_a_gpu() -> None:
    if has_nvidia_gpu():
        pytest.skip("this machine has an NVIDIA driver")
    choice = Choice(Encoder("h264_nvenc", Codec.H264, ("p4",), "p4", 20), "nv12")
    settings = VideoSettings(256, 256, Fraction(1, 25), Fraction(25))
    picture = video_frame(torch.zeros((384, 256), dtype=torch.uint8))
    assert nvenc_problem(choice, settings, 0, lambda: picture) == "Operation not permitted"


@pytest.fixture(scope="module")
def on_gpu(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunReport, list[str], U8]:
    """The clip through a GPU, with frames that stay in its memory."""
    if problem := cuda_problem():
        pytest.skip(problem)
    return through(clip, tmp_path_factory.mktemp("gpu") / "tensors.mp4", "cuda:0", gpu=0)


@pytest.mark.gpu
def test_a_whole_video_on_a_gpu_is_the_video_on_the_processor(
    clip: Path, tmp_path: Path, on_gpu: tuple[RunReport, list[str], U8]
) -> None:
    _, _, ours = through(clip, tmp_path / "slots.mp4", "")
    report, _, theirs = on_gpu
    assert report.frames == FRAMES
    assert np.abs(ours.astype(int) - theirs).mean() < 2  # another encoder, and half precision


@pytest.mark.gpu
def test_pictures_of_nvdec_stay_on_the_gpu(clip: Path, on_gpu: tuple[RunReport, list[str], U8]) -> None:
    """Where NVDEC gives pictures to the processor, it must give them to PyTorch too."""
    report, notices, _ = on_gpu
    if problem := nvdec_problem(clip, 0, 0):
        pytest.skip(f"decoded on the {report.summaries['decode']['decoder']}: this machine has no NVDEC ({problem})")
    assert report.summaries["decode"]["decoder"] == "NVDEC on cuda:0", notices


@pytest.mark.gpu
def test_nvenc_takes_pictures_from_the_gpu(on_gpu: tuple[RunReport, list[str], U8]) -> None:
    """Where NVENC takes pictures from the processor, it must take PyTorch's too. Some GPUs, as the H200, have none."""
    report, notices, _ = on_gpu
    name, place = (report.summaries["encode"][key] for key in ("encoder", "input"))
    if "nvenc" not in name:
        pytest.skip(f"encoded by {name}: {next(line for line in notices if line.startswith('encoder'))}")
    assert place == "cuda:0", notices
    assert not any(line.startswith("frames are copied") for line in notices)
