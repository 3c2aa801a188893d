"""Takes face masks off the faces in video, in real time.

The output is a plausible face, never evidence of who someone is.

    unmask.stream   the real-time path: decode, track, segment, inpaint, smooth, encode
    unmask.models   the networks, the face geometry and the engines that run them
    unmask.train    synthetic masks, training, evaluation, export
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("unmask")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
