"""`unmask compile`: compiles and checks the networks ahead, so that the first run does not have to."""

import time

from unmask.options import DeviceOption, EngineOption
from unmask.progress import say


def compile_networks(
    engine: EngineOption = "auto",
    device: DeviceOption = "auto",
) -> None:
    """Compile the networks ahead, and check what they compute.

    TensorRT takes minutes, once for each version of it, each GPU and each
    set of weights; OpenVINO takes seconds. What was compiled is kept in
    $UNMASK_CACHE, or in `unmask` in your cache folder.

    An engine that does not agree with float32 on real faces to 35 dB is
    refused.
    """
    from unmask.models.engine import NETWORKS, cache_folder, choose, load
    from unmask.models.engines import parity
    from unmask.models.masked_faces import FaceLandmarker, MaskedFaceDetector
    from unmask.models.mediapipe import FaceDetector, FaceMesh
    from unmask.stream.masked_finder import SHAPES

    choice = choose(device, engine)
    for reason in choice.why_not_better:
        say(reason)
    for network in NETWORKS:
        began = time.monotonic()
        loaded = load(network, choice, say)
        seconds = time.monotonic() - began
        agreement = parity.check(network, loaded, parity.MOST_CROPS)
        print(f"{network}: {loaded.description}; {agreement:.1f} dB against float32; ready in {seconds:.1f} s")
    FaceDetector("short"), FaceDetector("full"), FaceMesh(), FaceLandmarker()
    for size in SHAPES.values():
        MaskedFaceDetector(size)
    print(f"the trackers' networks: OpenVINO on the CPU; everything is kept in {cache_folder()}")
