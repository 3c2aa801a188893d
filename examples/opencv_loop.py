"""Takes the masks off a video with OpenCV: python examples/opencv_loop.py IN.mp4 OUT.mp4, while `unmask serve` runs.

What is painted is a plausible face, never evidence of who someone is.
"""

import sys

import cv2

from unmask.stream import Client

if len(sys.argv) < 3:
    print("name two files: python examples/opencv_loop.py IN.mp4 OUT.mp4", file=sys.stderr)
    sys.exit(2)
video = cv2.VideoCapture(sys.argv[1])  # or 0 for the camera
if not video.isOpened():
    print(f"{sys.argv[1]}: cannot be read as a video", file=sys.stderr)
    sys.exit(2)
size = int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
output = cv2.VideoWriter(sys.argv[2], cv2.VideoWriter.fourcc(*"mp4v"), video.get(cv2.CAP_PROP_FPS), size)
with Client("tcp://127.0.0.1:5555" if len(sys.argv) < 4 else sys.argv[3], format="bgr24") as unmask:
    while (frame := video.read()[1]) is not None:
        output.write(unmask(frame))
output.release()
