"""Where compiled engines are kept: one file each, named by everything that the engine depends on.

A file is one line of JSON (what it was built for, the checksum of what follows, how well it agreed with the reference)
and then the engine. What does not match is as good as absent: it is built again.
"""

import hashlib
import json
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_FORMAT = 1


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on; a change in any of it makes another engine.

    Args:
        network: "segmenter" or "inpainter".
        compiler: with its version, such as "TensorRT 11.0.0.114".
        weights: SHA-256 of the file that the engine is compiled from.
        batch: faces per call.
        precision: of the arithmetic, "fp16".
        gpu: name and compute capability.
    """

    network: str
    compiler: str
    weights: str
    batch: int
    precision: str
    gpu: str

    def path(self, folder: Path) -> Path:
        """The file of this engine in a folder."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        compiler = re.sub(r"[^a-z]+", "-", self.compiler.lower()).strip("-")
        return folder / f"{self.network}-{compiler}-b{self.batch}-{digest[:16]}.engine"


@dataclass(frozen=True)
class StoredEngine:
    """An engine that was built and checked.

    Args:
        data: as the compiler gave it.
        psnr_db: how well it agreed with the reference when it was built.
    """

    data: bytes
    psnr_db: float


def read(key: EngineKey, folder: Path) -> StoredEngine | None:
    """The engine of a key; None where there is none, or what is there is damaged or of another key."""
    try:
        head, _, data = key.path(folder).read_bytes().partition(b"\n")
        about = json.loads(head)
        sound = about["sha256"] == hashlib.sha256(data).hexdigest()
        if about["format"] == _FORMAT and about["key"] == asdict(key) and sound:
            return StoredEngine(data, float(about["psnr_db"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def write(key: EngineKey, engine: StoredEngine, folder: Path) -> None:
    """Keep an engine. The file appears in one step, so that nobody reads half of one. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "format": _FORMAT,
        "key": asdict(key),
        "psnr_db": round(engine.psnr_db, 2),
        "sha256": hashlib.sha256(engine.data).hexdigest(),
    }
    handle, name = tempfile.mkstemp(dir=folder, prefix=".engine-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(about).encode() + b"\n" + engine.data)
        os.replace(name, key.path(folder))
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
