# Training on NVIDIA cards, from the checkout; deploy/kubernetes/train.yml runs it. Neither built nor run by this project.
#
#   docker build -f deploy/docker/training.Dockerfile -t ppgfl-train:gpu .
ARG PADDLE=3.2.2-gpu-cuda12.6-cudnn9.5
FROM paddlepaddle/paddle:${PADDLE}
COPY . /app
WORKDIR /app
RUN python -m pip install --no-cache-dir -e . && \
    useradd --uid 10001 --create-home ppgfl && mkdir -p /app/log && chown 10001 /app /app/log
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
ENTRYPOINT ["bash"]
