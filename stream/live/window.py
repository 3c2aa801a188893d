"""The output that is a window on the screen."""

import os
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from unmask.errors import UserError
from unmask.stream.frame import U8
from unmask.stream.jobs import SYNTHETIC
from unmask.stream.live.mailbox import Mailbox, WhenFull
from unmask.stream.live.output import Output, Showing, rgb_of
from unmask.stream.live.state import LiveState
from unmask.stream.pictures import Picture, write_picture
from unmask.stream.stage import Context

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # pygame greets on stdout otherwise
import pygame

_BLIND: Final = frozenset({"dummy", "offscreen", "evdev"})
"""What SDL falls back to where there is no screen."""

_POLL_SECONDS: Final = 0.02
_REDRAW_SECONDS: Final = 0.5
_OPEN_SECONDS: Final = 10.0
_LARGEST_SHARE: Final = 0.9
_TEXT_PX: Final = 20
_WHITE: Final = (255, 255, 255)
_BLACK: Final = (0, 0, 0)

KEYS: Final = "space: before or after; s: snapshot; f: figures; q: quit"


class Window(Output):
    """Shows the newest frame, with figures in the corner. A thread of its own draws, and hears the keys at all times.

    Args:
        state: of the run.
        folder: where snapshots are written, as unmask-DATE-TIME.png.
    """

    name = "window"
    wants_source = True

    def __init__(self, state: LiveState, folder: Path) -> None:
        self._state = state
        self._folder = folder

    def open(self, context: Context) -> None:
        self._layout = context.layout
        self._box: Mailbox[tuple[U8, U8]] = Mailbox(1, WhenFull.DROP_OLDEST)
        self._pair: tuple[U8, U8] | None = None
        self._before = False
        self._figures = True
        self._drawn = self._snapshots = 0
        self._opened = threading.Event()
        self._error: str | None = None
        self._thread = threading.Thread(target=self._work, name="unmask-window", daemon=True)
        self._thread.start()
        if not self._opened.wait(_OPEN_SECONDS) or self._error is not None:
            reason = self._error or "it does not open"
            raise UserError(f"--window: {reason}; is there a screen? Without one use --http 8080")
        context.notice(f"window: {KEYS}")

    def show(self, showing: Showing) -> None:
        self._box.put((showing.i420(source=True), showing.i420()))

    def close(self) -> None:
        if hasattr(self, "_thread"):
            self._box.close()
            self._thread.join(2.0)

    def summary(self) -> dict[str, Any]:
        return {"drawn": self._drawn, "snapshots": self._snapshots}

    # --- the window's thread ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            pygame.display.init()
            pygame.font.init()
            if pygame.display.get_driver() in _BLIND and "SDL_VIDEODRIVER" not in os.environ:
                raise pygame.error("no screen was found")
            self._screen = pygame.display.set_mode(self._size(), pygame.RESIZABLE)
            self._font = pygame.font.Font(None, _TEXT_PX)
        except pygame.error as error:
            self._error = str(error)
            self._opened.set()
            return
        pygame.display.set_caption(f"unmask live: {self._state.source} - the face under the mask is invented")
        self._opened.set()
        try:
            self._go_on()
        except pygame.error as error:
            self._state.notice(f"window: {error}; ending")
            self._state.end()
        pygame.quit()

    def _go_on(self) -> None:
        """Draw and hear until the box is closed."""
        drawn_at = 0.0
        while not self._box.ended:
            pair = self._box.get(_POLL_SECONDS)
            self._pair = pair or self._pair
            events = pygame.event.get()
            for event in events:
                self._heed(event)
            # The figures go on while the source is away.
            if pair or events or time.monotonic() - drawn_at > _REDRAW_SECONDS:
                self._draw()
                drawn_at = time.monotonic()

    def _size(self) -> tuple[int, int]:
        """The size of the picture, or as much of it as the screen has room for."""
        width, height = pygame.display.get_desktop_sizes()[0]
        picture = self._layout.width, self._layout.height
        scale = min(1.0, _LARGEST_SHARE * width / picture[0], _LARGEST_SHARE * height / picture[1])
        return max(1, round(picture[0] * scale)), max(1, round(picture[1] * scale))

    def _heed(self, event: "pygame.event.Event") -> None:
        if event.type == pygame.QUIT:
            self._state.end()
        if event.type != pygame.KEYDOWN:
            return
        orders: dict[int, Callable[[], None]] = {
            pygame.K_SPACE: self._toggle_before,
            pygame.K_b: self._toggle_before,
            pygame.K_f: self._toggle_figures,
            pygame.K_s: self._snapshot,
            pygame.K_q: self._state.end,
            pygame.K_ESCAPE: self._state.end,
        }
        orders.get(event.key, lambda: None)()

    def _toggle_before(self) -> None:
        self._before = not self._before

    def _toggle_figures(self) -> None:
        self._figures = not self._figures

    def _snapshot(self) -> None:
        """Write the result of the newest frame as PNG; its description says that the face is synthetic."""
        if self._pair is None:
            return
        rgb = rgb_of(self._pair[1], self._layout)
        path = self._folder / f"unmask-{datetime.now():%Y%m%d-%H%M%S-%f}.png"
        like = Picture(rgb, alpha=None, profile=None, colour=(), lossless=True, upright=True, left_out=())
        try:
            write_picture(path, rgb, like, comment=SYNTHETIC)
        except (OSError, UserError) as error:
            self._state.notice(f"snapshot: {error}")
            return
        self._snapshots += 1
        self._state.notice(f"snapshot: {path}")

    def _draw(self) -> None:
        if self._pair is not None:
            rgb = rgb_of(self._pair[0] if self._before else self._pair[1], self._layout)
            surface = pygame.image.frombuffer(rgb.tobytes(), (rgb.shape[1], rgb.shape[0]), "RGB")
            target = _fitted(surface.get_size(), self._screen.get_size())
            self._screen.fill(_BLACK)
            self._screen.blit(pygame.transform.scale(surface, target.size), target)
            self._drawn += 1
        if self._figures:
            words = "before; " if self._before else ""
            text = self._font.render(f" {words}{self._state.figures().line()} ", True, _WHITE, _BLACK)
            self._screen.blit(text, (8, 8))
        pygame.display.flip()


def _fitted(picture: tuple[int, int], screen: tuple[int, int]) -> "pygame.Rect":
    """The largest place for a picture in the middle of the window, in its own shape."""
    scale = min(screen[0] / picture[0], screen[1] / picture[1])
    size = max(1, round(picture[0] * scale)), max(1, round(picture[1] * scale))
    return pygame.Rect((screen[0] - size[0]) // 2, (screen[1] - size[1]) // 2, *size)
