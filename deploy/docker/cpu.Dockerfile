# The service on a CPU, from the checkout:
#
#   docker build -f deploy/docker/cpu.Dockerfile -t ppgfl-serve:cpu .
#   docker run --rm -p 8866:8866 -v "$PWD/output_inference/gfl_r18vd_1x_coco:/model:ro" ppgfl-serve:cpu
#
# --build-arg ENGINE=paddle: with Paddle Inference, for a folder without a model.onnx; then end the second line with
# `--model_dir /model`.
ARG PYTHON=3.11.13
FROM python:${PYTHON}-slim-bookworm AS packages
ARG ENGINE=onnx
COPY deploy/docker/requirements-serve.txt deploy/docker/requirements-${ENGINE}.txt /tmp/
RUN python -m venv /opt/ppgfl && \
    /opt/ppgfl/bin/pip install --no-cache-dir -r /tmp/requirements-serve.txt -r /tmp/requirements-${ENGINE}.txt

FROM python:${PYTHON}-slim-bookworm
# Paddle wants libgomp. Without a version, as Debian keeps only the newest one of each package.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* && \
    useradd --uid 10001 --create-home ppgfl
COPY --from=packages /opt/ppgfl /opt/ppgfl
COPY deploy/python /app/python
COPY deploy/serving /app/serving
ENV PATH=/opt/ppgfl/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8866
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8866/health', timeout=8)"]
ENTRYPOINT ["python", "/app/serving/server.py", "--host", "0.0.0.0", "--port", "8866"]
CMD ["--model_dir", "/model/model.onnx"]
