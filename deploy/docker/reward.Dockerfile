# A reward server: the base install alone, without torch, Ray, vLLM or DeepSpeed.
#
#     docker build -f deploy/docker/reward.Dockerfile -t trireme/reward:0.1.0 .
#     docker run -v "$PWD/rewards.yaml:/etc/trireme/rewards.yaml:ro" -p 127.0.0.1:50051:50051 trireme/reward:0.1.0
FROM python:3.11.13-slim-bookworm

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /opt/trireme
COPY pyproject.toml README.md LICENSE ./
COPY deploy/requirements-cpu.txt constraints.txt
COPY services services
COPY reward_server reward_server
COPY rollout_workers rollout_workers
COPY ppo_learner ppo_learner
# The lock only holds versions here: what is installed is what the base install asks for.
RUN pip install --constraint constraints.txt .

# A number, so that Kubernetes can tell that it is not root.
RUN useradd --uid 1000 --create-home --home-dir /var/lib/trireme trireme
USER 1000
WORKDIR /var/lib/trireme
EXPOSE 50051
# What is served, and on which interface, is the mounted file's to say; SIGTERM drains.
ENTRYPOINT ["trireme"]
CMD ["reward", "serve", "/etc/trireme/rewards.yaml"]
