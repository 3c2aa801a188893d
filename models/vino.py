"""OpenVINO without its telemetry: the package reports every import to its makers unless its reporter is missing.

A program that handles people's faces tells nobody that it runs. OpenVINO has a stand-in for the missing reporter.
"""

import sys

import numpy as np

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402 - only after the line above

__all__ = ["openvino"]

# OpenVINO makes its tables of NumPy's types when they are first asked for, and lets other threads run meanwhile. Two
# that ask at once wait for each other for ever (2026.4), so they are asked for here, where there is one thread.
_ = openvino.op.Constant(np.zeros(1, np.float32)).data
