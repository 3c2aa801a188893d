"""What benchmarks run beside the commands, each in a process of its own."""

import json
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from unmask.stream.encoders import EncodeOptions
from unmask.stream.frame import Frame
from unmask.stream.jobs import milliseconds
from unmask.stream.media import probe
from unmask.stream.pipeline import Settings, build
from unmask.stream.stage import Context, Stage
from unmask.stream.stages.decode import Decode
from unmask.stream.stages.encode import Encode
from unmask.stream.supervisor import run
from unmask.stream.timing import Durations


def floor(clip: Path, output: Path) -> dict[str, Any]:
    """Decode a clip and encode it again with the pipeline's own ends. Returns the report."""
    source = probe(clip)
    result = run((Decode(source), Encode(output, source, EncodeOptions())), source.layout)
    return {
        "seconds": result.wall_seconds,
        "open_seconds": result.open_seconds,
        "masks_removed": 0,
        "engine": "none",
        "encoder": result.summaries["encode"]["encoder"],
        "stages": {name: milliseconds(timing) for name, timing in result.stages.items()},
    }


def direct(clip: Path, output: Path, settings: Settings) -> dict[str, Any]:
    """Take each frame through all stages, one after the other: the stages' own work and nothing else.

    `work_seconds` is the processor time of the loop, that of the threads of encoder and networks included.
    """
    began = time.perf_counter()
    source = probe(clip)
    stages = build(source, output, settings, EncodeOptions())
    for stage in stages:
        stage.open(Context(source.layout, settings.max_faces))
    opened, opened_cpu = time.perf_counter(), time.process_time()
    durations = _carry(stages, Context(source.layout, settings.max_faces))
    figures = {
        "seconds": time.perf_counter() - began,
        "open_seconds": opened - began,
        "work_seconds": time.process_time() - opened_cpu,
        "masks_removed": stages[2].summary()["masks_removed"],
        "engine": stages[3].summary()["engine"],
        "encoder": stages[-1].summary()["encoder"],
        "stages": {name: milliseconds(one.timing()) for name, one in durations.items()},
    }
    for stage in stages:
        stage.close()
    return figures


def _carry(stages: Sequence[Stage], context: Context) -> dict[str, Durations]:
    """All frames of the source, on one buffer, and the end of the stream."""
    durations = {stage.name: Durations() for stage in stages}
    buffer = np.zeros(context.layout.slot_bytes(context.max_faces), np.uint8)
    index = 0
    while True:
        frame = Frame(index, 0, Fraction(1), context.layout, buffer, 0)
        for stage in stages:
            started = time.perf_counter()
            given = list(stage.process(frame))
            if not given:
                for one in stages:
                    list(one.flush())
                return durations
            durations[stage.name].add(time.perf_counter() - started)
        index += 1


def main(kind: str, clip: str, output: str, report: str, device: str, engine: str) -> None:
    """Run one kind and write its report."""
    Path(output).unlink(missing_ok=True)
    settings = Settings(device, engine=engine)
    done = floor(Path(clip), Path(output)) if kind == "floor" else direct(Path(clip), Path(output), settings)
    Path(report).write_text(json.dumps(done))
