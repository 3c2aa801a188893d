"""The output that other programs see as a camera: v4l2loopback on Linux, OBS elsewhere."""

from typing import Any

import pyvirtualcam

from unmask.errors import StageError, UserError
from unmask.stream.live.feed import FeedInfo
from unmask.stream.live.output import Output, Showing
from unmask.stream.live.state import LiveState
from unmask.stream.stage import Context


class VirtualCamera(Output):
    """Sends every frame to a virtual camera, in the pictures' own format.

    Args:
        state: of the run.
        info: of the source; its rate is promised to other programs.
        device: such as /dev/video2; None takes the first that is free.
        backend: of pyvirtualcam; None tries all.
    """

    name = "virtual camera"

    def __init__(
        self, state: LiveState, info: FeedInfo, *, device: str | None = None, backend: str | None = None
    ) -> None:
        self._info, self._device, self._backend = info, device, backend
        self._camera: Any = None

    def open(self, context: Context) -> None:
        self._frames = 0
        try:
            self._camera = pyvirtualcam.Camera(
                width=context.layout.width,
                height=context.layout.height,
                fps=float(self._info.fps),
                fmt=pyvirtualcam.PixelFormat.I420,
                device=self._device,
                backend=self._backend,
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--virtual-camera: {reason}; on Linux load it first: "
                "sudo modprobe v4l2loopback exclusive_caps=1 card_label=unmask"
            ) from error
        context.notice(f"virtual camera: {self._camera.device} ({self._camera.backend})")

    def show(self, showing: Showing) -> None:
        try:
            self._camera.send(showing.i420().ravel())
        except (RuntimeError, OSError) as error:
            raise StageError("outputs", f"the virtual camera takes no more pictures ({error})") from error
        self._frames += 1

    def close(self) -> None:
        if self._camera is not None:
            self._camera.close()

    def summary(self) -> dict[str, Any]:
        return {"frames": self._frames} | ({"device": self._camera.device} if self._camera is not None else {})
