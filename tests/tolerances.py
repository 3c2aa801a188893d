"""How far results may lie apart, in one place, each with its reason."""

from typing import Final

ENGINE_PSNR_DB: Final = 40.0
"""Outputs of two engines on one input. Half precision against float32 measures above 60 dB, bfloat16 above 50; a wrong
layout, scale or fold measures below 30."""

MASK_IOU: Final = 0.85
"""Predicted against drawn mask on the portrait: the figure that real masks must reach too."""
