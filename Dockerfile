# docker build -t unmask .
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" unmask video clip.mp4
FROM python:3.11-slim AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim AS cpu
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir /wheel/*.whl && rm -r /wheel \
    && useradd --create-home --uid 1000 unmask
USER unmask
WORKDIR /data
ENTRYPOINT ["unmask"]
CMD ["--help"]
