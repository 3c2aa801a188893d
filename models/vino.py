"""OpenVINO without its telemetry: the package reports every import to its makers unless its reporter is missing.

A program that handles people's faces tells nobody that it runs. OpenVINO has a stand-in for the missing reporter.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402 - only after the line above

__all__ = ["openvino"]
