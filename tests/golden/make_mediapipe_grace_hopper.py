"""Writes mediapipe_grace_hopper.json: what MediaPipe itself finds on matplotlib's sample portrait.

MediaPipe is no dependency of this project. To run this again: `pip install mediapipe==0.10.21 matplotlib`.
"""

import json
from pathlib import Path

import cv2
import matplotlib.cbook
import mediapipe

TARGET = Path(__file__).with_name("mediapipe_grace_hopper.json")


def main() -> None:
    path = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    height, width = rgb.shape[:2]
    mesh = mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True).process(rgb)
    found = mediapipe.solutions.face_detection.FaceDetection(model_selection=0).process(rgb).detections[0]
    box = found.location_data.relative_bounding_box
    result = {
        "mediapipe": mediapipe.__version__,
        "size": [width, height],
        "score": round(found.score[0], 3),
        "box_px": [
            round(value, 1)
            for value in (
                box.xmin * width,
                box.ymin * height,
                (box.xmin + box.width) * width,
                (box.ymin + box.height) * height,
            )
        ],
        "landmarks_px": [
            [round(point.x * width, 1), round(point.y * height, 1), round(point.z * width, 1)]
            for point in mesh.multi_face_landmarks[0].landmark
        ],
    }
    TARGET.write_text(json.dumps(result, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
