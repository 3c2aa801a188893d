# docker build -t unmask .
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" unmask video clip.mp4
#
# docker build -t unmask-gpu --target gpu .
# docker run --rm --gpus all -v unmask-engines:/cache -v "$PWD:/data" unmask-gpu video clip.mp4
FROM python:3.11-slim AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

# Neither built nor tried on a GPU yet. Ubuntu 24.04 brings Python 3.12; the CUDA libraries of PyTorch and TensorRT come with
# their packages. The first run compiles the engines into the volume /cache, later ones find them there.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04 AS gpu
# `video` brings NVDEC and NVENC into the container; without it only `compute` and `utility` come.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=video,compute,utility UNMASK_CACHE=/cache
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/unmask && (userdel --remove ubuntu || true) \
    && useradd --create-home --uid 1000 unmask && install -d -o unmask /cache /data
ENV PATH=/opt/unmask/bin:$PATH
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir "$(ls /wheel/*.whl)[gpu]" && rm -r /wheel
USER unmask
VOLUME /cache
WORKDIR /data
ENTRYPOINT ["unmask"]
CMD ["--help"]

FROM python:3.11-slim AS cpu
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir /wheel/*.whl && rm -r /wheel \
    && useradd --create-home --uid 1000 unmask
USER unmask
WORKDIR /data
ENTRYPOINT ["unmask"]
CMD ["--help"]
