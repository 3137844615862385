# The service as an image:       docker build -t featuremaps .
# With CUDA and cuDNN:           docker build --build-arg RUNTIME=cuda -t featuremaps:cuda .
#                                docker run --gpus all ...   (NVIDIA's driver and container toolkit come with the machine)
# Models:                        docker run -v ./models:/models:ro ...   (without any, the bundled one)
# It listens beyond loopback, so it wants keys, or FEATUREMAPS_ALLOW_ANONYMOUS=true where the network is trusted.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG RUNTIME=cpu
WORKDIR /build
COPY requirements.lock requirements-cuda.lock ./
# Compiled below, since a read-only root cannot keep what Python compiles. What packages bring for their own tests,
# their sources in C, zstandard's second backend for other Pythons, and pip are not wanted where a service runs.
RUN case "$RUNTIME" in cpu) lock=requirements.lock ;; cuda) lock=requirements-cuda.lock ;; *) exit 64 ;; esac \
    && python3 -m venv /opt/featuremaps \
    && /opt/featuremaps/bin/pip install --quiet --no-cache-dir --no-compile --only-binary :all: \
        --require-hashes -r "$lock" \
    && /opt/featuremaps/bin/pip uninstall --quiet --yes pip setuptools \
    && find /opt/featuremaps -type d \( -name tests -o -path '*/onnx/backend/test' \) -prune -exec rm -r {} + \
    && find /opt/featuremaps -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.[ch]' -o -name '*.hpp' \
        -o -path '*/zstandard/_cffi*.so' \) -delete
COPY service /opt/featuremaps/app/service
COPY models /opt/featuremaps/app/models
COPY LICENSE /opt/featuremaps/app/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/featuremaps

FROM ${PYTHON_IMAGE}
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="featuremaps" \
    org.opencontainers.image.description="Any layer's feature maps of any ONNX CNN over HTTP" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
# A volume that is mounted here takes over the owner; nothing else of the image can be written.
RUN install -d -o 10001 -g 10001 /data
COPY --from=build /opt/featuremaps /opt/featuremaps
ENV PATH=/opt/featuremaps/bin:$PATH \
    PYTHONPATH=/opt/featuremaps/app \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    FEATUREMAPS_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
# Not by urllib, which would ask a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ.get('FEATUREMAPS_PORT', 8000)), timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve"]
