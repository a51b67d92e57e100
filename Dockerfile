# Three images from one file: `slim` (the default: ONNX engine, no TensorFlow), `full` (both
# engines), and `ray` (a node of a Ray cluster, ONNX engine). Nothing is compiled: every
# dependency is a wheel from a lock with hashes.
#
# A tag can move to another image. To pin the base image, look its digest up
# (docker buildx imagetools inspect python:3.13-slim) and build with
#   PYTHON_IMAGE=python@sha256:... docker compose build
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS wheels-slim
COPY requirements/slim.lock /tmp/slim.lock
RUN python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir --only-binary :all: --require-hashes -r /tmp/slim.lock

FROM wheels-slim AS wheels-full
COPY requirements/full.lock /tmp/full.lock
RUN /venv/bin/pip install --no-cache-dir --only-binary :all: --require-hashes -r /tmp/full.lock

FROM wheels-slim AS wheels-ray
COPY requirements/ray.lock /tmp/ray.lock
RUN /venv/bin/pip install --no-cache-dir --only-binary :all: --require-hashes -r /tmp/ray.lock

FROM ${PYTHON_IMAGE} AS base
ARG PYTHON_IMAGE
ARG REVISION=
LABEL org.opencontainers.image.title="Unrolled" \
      org.opencontainers.image.description="Serves recurrent networks over REST" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin unrolled
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    ORT_DISABLE_TELEMETRY=1 \
    UNROLLED_HOST=0.0.0.0 \
    UNROLLED_LOG_FORMAT=json
WORKDIR /app
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["python", "-m", "unrolled"]
CMD ["serve"]

FROM base AS full
COPY --from=wheels-full /venv /venv
COPY unrolled unrolled
COPY model model
COPY service service
COPY bundles bundles
USER 10001

FROM base AS ray
# Ray's workers import `service` from here, whatever their working directory is.
ENV PYTHONPATH=/app \
    HOME=/tmp \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
COPY --from=wheels-ray /venv /venv
# KubeRay may start them in a login shell, which sets its own PATH.
COPY --from=wheels-ray /venv/bin/ray /venv/bin/serve /usr/local/bin/
COPY unrolled unrolled
COPY model model
COPY service service
COPY bundles bundles
EXPOSE 6379 8265 10001
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 \
    CMD ["ray", "health-check"]
ENTRYPOINT ["ray"]
CMD ["start", "--head", "--block"]
USER 10001

FROM base AS slim
COPY --from=wheels-slim /venv /venv
COPY unrolled unrolled
COPY model model
COPY service service
COPY bundles bundles
USER 10001
