"""A picture as another camera would have filmed it, on 8-bit pictures: what the detector is trained on."""

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]


def as_filmed(rgb: U8, rng: np.random.Generator) -> U8:
    """Random light, blur, resolution, noise and JPEG. (H, W, 3) uint8 in and out."""
    rgb = _relit(rgb, rng)
    height, width = rgb.shape[:2]
    kind = rng.random()
    if kind < 0.2:
        rgb = np.asarray(cv2.GaussianBlur(rgb, (0, 0), float(rng.uniform(0.4, 2.0))), np.uint8)
    elif kind < 0.3:
        rgb = _moved(rgb, rng)
    elif kind < 0.5:
        factor = rng.uniform(0.25, 0.8)
        small = cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        rgb = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    if rng.random() < 0.25:
        noise = rng.uniform(2, 14) * rng.standard_normal(rgb.shape, np.float32)
        rgb = np.clip(np.rint(rgb + noise), 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        _, data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 90))])
        rgb = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return rgb


def _relit(rgb: U8, rng: np.random.Generator) -> U8:
    """Exposure, contrast, gamma and white balance; one picture in three as in bad light; some without colour."""
    strength = 2.5 if rng.random() < 0.35 else 1.0
    x = np.linspace(1e-4, 1, 256)[:, None]
    gain = np.exp(strength * (rng.normal(-0.03, 0.14) + rng.normal(0, 0.05, 3)))
    out = x ** np.exp(rng.normal(0, 0.12 * strength)) * gain
    out = (out - 0.5) * np.exp(rng.normal(0, 0.1)) + 0.5
    table = np.rint(np.clip(out, 0, 1) * 255).astype(np.uint8)
    lit = cv2.LUT(rgb, table[None])
    if rng.random() < 0.08:
        lit = cv2.cvtColor(cv2.cvtColor(lit, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(lit, np.uint8)


def _moved(rgb: U8, rng: np.random.Generator) -> U8:
    """Motion blur."""
    length = int(rng.integers(3, 10))
    kernel = np.zeros((length, length), np.float32)
    angle = rng.uniform(0, np.pi)
    middle, reach = (length - 1) / 2, (length - 1) / 2
    ends = [(round(middle + s * reach * np.cos(angle)), round(middle + s * reach * np.sin(angle))) for s in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0)
    return np.asarray(cv2.filter2D(rgb, -1, kernel / kernel.sum()), np.uint8)
