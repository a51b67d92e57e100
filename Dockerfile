# Two images from one file: `slim` (the default: ONNX engine, no TensorFlow) and `full`
# (both engines). Nothing is compiled: every dependency is a wheel of the hash lock.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS wheels-slim
COPY requirements/slim.lock /tmp/slim.lock
RUN python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir --only-binary :all: --require-hashes -r /tmp/slim.lock

FROM wheels-slim AS wheels-full
COPY requirements/full.lock /tmp/full.lock
RUN /venv/bin/pip install --no-cache-dir --only-binary :all: --require-hashes -r /tmp/full.lock

FROM python:${PYTHON}-slim AS base
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin unrolled
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    UNROLLED_HOST=0.0.0.0 \
    UNROLLED_LOG_FORMAT=json
WORKDIR /app
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve"]

FROM base AS full
COPY --from=wheels-full /venv /venv
COPY model/__init__.py model/bundle.py model/contents.py model/golden.py model/onnx_operators.py \
     model/operators.py model/quiet.py model/signature.py model/tensorflow_operators.py model/wire.py model/
COPY service service
COPY bundles bundles
USER 10001

FROM base AS slim
COPY --from=wheels-slim /venv /venv
COPY model/__init__.py model/bundle.py model/contents.py model/golden.py model/onnx_operators.py \
     model/operators.py model/quiet.py model/signature.py model/tensorflow_operators.py model/wire.py model/
COPY service service
COPY bundles bundles
USER 10001
