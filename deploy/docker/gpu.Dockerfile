# The service on an NVIDIA card, with ONNX Runtime, from the checkout. Neither built nor run by this project.
#
#   docker build -f deploy/docker/gpu.Dockerfile -t ppgfl-serve:gpu .
#   docker run --rm --gpus all -p 8866:8866 -v "$PWD/output_inference/gfl_r18vd_1x_coco:/model:ro" ppgfl-serve:gpu
ARG CUDA=12.6.3-cudnn-runtime-ubuntu24.04
FROM nvidia/cuda:${CUDA} AS packages
# Without versions, as Ubuntu keeps only the newest one of each package.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
COPY deploy/docker/requirements-serve.txt deploy/docker/requirements-gpu.txt /tmp/
RUN python3 -m venv /opt/ppgfl && \
    /opt/ppgfl/bin/pip install --no-cache-dir -r /tmp/requirements-serve.txt -r /tmp/requirements-gpu.txt

FROM nvidia/cuda:${CUDA}
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/* && \
    useradd --uid 10001 --create-home ppgfl
COPY --from=packages /opt/ppgfl /opt/ppgfl
COPY deploy/python /app/python
COPY deploy/serving /app/serving
ENV PATH=/opt/ppgfl/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8866
# A first start may take minutes, while CUDA loads its kernels.
HEALTHCHECK --interval=15s --timeout=10s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8866/health', timeout=8)"]
ENTRYPOINT ["python", "/app/serving/server.py", "--host", "0.0.0.0", "--port", "8866", "--device", "GPU"]
CMD ["--model_dir", "/model/model.onnx"]
