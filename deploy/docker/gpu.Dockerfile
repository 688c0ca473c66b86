# Everything for runs on NVIDIA GPUs. The CUDA libraries come with torch and vLLM; the host needs only the driver and
# NVIDIA's container toolkit.
#
#     docker build -f deploy/docker/gpu.Dockerfile -t trireme/gpu:0.1.0 .
FROM python:3.11.13-slim-bookworm

# g++: Triton compiles its launchers with it. libnuma1: vLLM. wget: KubeRay's health checks.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 wget \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /opt/trireme
COPY pyproject.toml README.md LICENSE ./
COPY deploy/requirements-cpu.txt lock.txt
COPY deploy/requirements-job-server.txt job-server.txt
COPY services services
COPY reward_server reward_server
COPY rollout_workers rollout_workers
COPY ppo_learner ppo_learner
# KubeRay submits to Ray's job server, and probes the agent that `ray[default]` brings. The CPU lock holds the versions:
# the two builds of vLLM are one release, and differ in the one package left out here.
RUN grep -v '^apache-tvm-ffi==' lock.txt > constraints.txt \
    && pip install --constraint constraints.txt --requirement job-server.txt '.[gpu]'

RUN useradd --uid 1000 --create-home --home-dir /var/lib/trireme trireme
USER 1000
WORKDIR /var/lib/trireme
# No entry point: KubeRay starts `ray` in this image, a person starts `trireme`.
CMD ["trireme", "--help"]
