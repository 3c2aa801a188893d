"""The real-time path: frames go through decode, track, segment, inpaint, smooth, encode.

`Client` and `AsyncClient` of `unmask serve` are imported from here; they load when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.stream.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from unmask.stream import client

    return getattr(client, name)
