"""How far results may lie apart, in one place, each with its reason."""

from typing import Final

ENGINE_PSNR_DB: Final = 40.0
"""Outputs of two engines on one input. Half precision against float32 measures above 60 dB, bfloat16 above 50,
8-bit integers above 43; a wrong layout, scale or fold measures below 30."""

MASK_IOU: Final = 0.85
"""Predicted against drawn mask on the portrait: the figure that real masks must reach too."""

CANVAS_MEAN: Final = 0.6
CANVAS_SHARE: Final = 0.012
"""Two canvases on one photograph: mean difference of samples, of 255, and the share that differs by more than 4. One
enlarges by a cubic filter and samples bilinearly, the other samples with the cubic filter itself."""
