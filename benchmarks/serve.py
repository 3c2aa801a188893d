"""Measures `unmask serve` on this machine: python benchmarks/serve.py [--seconds 10]. Not installed, never a test.

Prints the round trip of one local client (640x480, raw, one masked face) beside the same frame through the same stages
in this process, in turns, so that both see the same machine; then how eight clients share the server.
"""

import argparse
import itertools
import sys
import threading
import time
from pathlib import Path

import cv2
import matplotlib.cbook
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from served import ServerProgram

from unmask.models.mediapipe import FaceDetector, FaceMesh
from unmask.stream import Client
from unmask.stream.face_stream import FaceStream, SharedEngines
from unmask.stream.pipeline import Settings
from unmask.stream.protocol import FrameRequest, Limits
from unmask.train.data import largest_face, read_rgb
from unmask.train.masks import Outline
from unmask.train.materials import draw_mask

U8 = npt.NDArray[np.uint8]


def masked_frames(count: int) -> list[U8]:
    """640x480 frames of one masked face that moves a little."""
    bare = read_rgb(Path(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    landmarks = largest_face(bare, FaceDetector(), FaceMesh())
    assert landmarks is not None
    drawn = draw_mask(bare.astype(np.float32) / 255, landmarks, np.random.default_rng(11), "surgical", Outline()).rgb
    face = np.rint(drawn * 255).astype(np.uint8)
    scale = 0.8
    frames = []
    for index in range(count):
        shift = 60 + 20 * np.sin(index / 8)
        matrix = np.array([[scale, 0, shift], [0, scale, 5.0 * np.cos(index / 5)]])
        frames.append(np.asarray(cv2.warpAffine(face, matrix, (640, 480)), np.uint8))
    return frames


def round_trip(address: str, frames: list[U8], rounds: int) -> None:
    """One client against the same stages in this process, frame by frame in turns.

    Before each of the two there is a short rest, as between the frames of a camera: a process that never sleeps is
    treated worse by a busy machine than one that does.
    """
    stream = FaceStream(Settings("cpu"), SharedEngines(Settings("cpu"), print), Limits(), lambda step, seconds: None)
    for shared in (True, False):
        served, worked, local = [], [], []
        with Client(address, shared_memory=shared) as unmask:
            for index in range(rounds):
                time.sleep(0.01)
                start = time.perf_counter()
                out = unmask(frames[index % len(frames)], seconds=index / 30, reset=index == 0)
                served.append(time.perf_counter() - start)
                worked.append(out.server_seconds)
                assert out.faces[0].unmasked
                time.sleep(0.01)
                local.append(in_process(stream, frames, index))
            kind = "shared memory" if unmask.uses_shared_memory else "messages"
        print(f"round trip, {kind}, {rounds - 10} frames:")
        for name, share in (("median", 0.5), ("fastest quarter", 0.25)):
            one, inside, other = (1000 * float(np.quantile(times[10:], share)) for times in (served, worked, local))
            print(f"  {name}: {one:.1f} ms; in process {other:.1f} ms, ratio {one / other:.2f};", end=" ")
            print(f"in the server's stages {inside:.1f} ms, ratio {one / inside:.2f}")


def in_process(stream: FaceStream, frames: list[U8], index: int) -> float:
    """Seconds that the stages take for a frame in this process."""
    frame = frames[index % len(frames)]
    request = FrameRequest(index, "", "rgb24", frame.size, index / 30, 640, 480, reset=index == 0)
    start = time.perf_counter()
    stream.process(request, frame.reshape(-1).data)
    return time.perf_counter() - start


def fairness(address: str, frames: list[U8], clients: int, seconds: float) -> None:
    """Clients that all send as fast as they may; every second one without shared memory."""
    begin, counts = threading.Barrier(clients), [0] * clients

    def use(number: int) -> None:
        with Client(address, timeout_seconds=60, shared_memory=number % 2 == 0) as unmask:
            unmask(frames[0])
            begin.wait()
            end = time.monotonic() + seconds
            for _ in unmask.stream(itertools.cycle(frames)):
                if time.monotonic() >= end:
                    break
                counts[number] += 1

    threads = [threading.Thread(target=use, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(counts) / seconds
    print(f"{clients} clients: {total:.1f} fps in all, slowest over fastest {min(counts) / max(counts):.2f}, {counts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the clients send")
    parser.add_argument("--rounds", type=int, default=150, help="frames of the round trip")
    arguments = parser.parse_args()
    frames = masked_frames(50)
    program = ServerProgram()
    try:
        round_trip(program.address, frames, arguments.rounds)
        before = program.memory_mb()
        for clients in (1, 8, 8):
            fairness(program.address, frames, clients, arguments.seconds)
        print(f"memory of the server: {before:.0f} MB before the clients, {program.memory_mb():.0f} MB after")
    finally:
        program.end()


if __name__ == "__main__":
    main()
