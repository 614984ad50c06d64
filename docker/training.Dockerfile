# syntax=docker/dockerfile:1
# Twins, training, evaluation and the policy server on a machine with a GPU (it runs on the CPU, too). ROS comes as wheels, as
# everywhere without a ROS installation, so the whole `rlco` command works in it. `--target system` stops before the workspace.
#
#   docker build -f docker/training.Dockerfile -t rlco-training .
#
# Build arguments:
#   CUDA_IMAGE   base image, Ubuntu 24.04; torch brings its own CUDA 13.0 libraries, so the small `base` flavour is enough
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${CUDA_IMAGE} AS system

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The rendering packages are those of scripts/setup.sh: lavapipe renders where the container sees no GPU.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates \
        git \
        make \
        python3-venv \
        mesa-vulkan-drivers libvulkan1 libgl1 libegl1 libx11-6 libxext6 \
    && rm -rf /var/lib/apt/lists/*
# Rendering on the GPU needs the driver's graphics part, which the container toolkit leaves out by default.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics \
    RLCO_BROWSER=none

FROM system AS training
WORKDIR /opt/rlco
# 7 GB in a layer of their own: a change of the code alone downloads nothing again.
COPY requirements.txt requirements-ros.txt ./
RUN python3 -m venv .venv \
    && .venv/bin/python -m pip install --no-cache-dir uv \
    && .venv/bin/python -m uv pip install --no-cache --compile-bytecode -p .venv/bin/python \
        -r requirements.txt -r requirements-ros.txt
COPY . .
RUN bash scripts/setup.sh
ENV PATH=/opt/rlco/.venv/bin:$PATH \
    ROS_HOME=/tmp/ros \
    HF_HOME=/data/.huggingface
RUN mkdir /data && chown ubuntu:ubuntu /data
USER ubuntu
WORKDIR /data
CMD ["rlco", "doctor"]
