"""What KubeRay's manifests and the chart make: valid, without root, without a secret's value, and of the right size."""

import copy
import shlex
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from jsonschema import ValidationError

from reward_server.__main__ import read_target
from reward_server.config import RewardServerConfig
from services.cli.arguments import load_config, take_switch
from services.control.config import RunConfig
from tests.deploy.manifests import (
    CHART,
    KUBERAY,
    KUBERNETES,
    ROOT,
    Manifest,
    check,
    one,
    pods,
    ray_spec,
    read,
    render,
)

SECURED = {"tlsSecret": "reward-tls", "clientTlsSecret": "run-tls", "tokenSecret": "reward-token"}
MADE: dict[str, list[Manifest]] = {
    "raycluster.yaml": read(KUBERAY / "raycluster.yaml"),
    "rayjob.yaml": read(KUBERAY / "rayjob.yaml"),
    "chart": render(),
    "chart, changed": render(
        {
            "reward": {
                "services": [{"name": "/etc/trireme/mine.py:score", "options": {"least": 0.5}}],
                "files": {"mine.py": "def score(sample, least):\n    return least\n"},
                "autoscaling": {"enabled": False},
                "secretEnv": [{"name": "JUDGE_API_KEY", "secretName": "judge", "key": "api_key"}],
                "networkPolicy": {"egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]},
            },
            "ray": {"kind": "cluster", "nodeSelector": {"gpu": "h100"}, "tolerations": [{"operator": "Exists"}]},
            "storage": {"storageClassName": "shared"},
        }
    ),
    "chart, rewards only": render({"ray": {"kind": "none"}}),
    "chart, secured": render({"reward": {"security": SECURED}}),
    "chart, secured cluster": render({"ray": {"kind": "cluster"}, "reward": {"security": SECURED}}),
    "chart, run only": render(
        {"reward": {"enabled": False}, "run": {"resume": True}, "storage": {"existingClaim": "c"}}
    ),
}
every = pytest.mark.parametrize("name", MADE)
with_ray = pytest.mark.parametrize("name", [name for name in MADE if name != "chart, rewards only"])


@pytest.mark.parametrize("version", KUBERNETES)
@every
def test_every_manifest_is_valid(name: str, version: str) -> None:
    for manifest in MADE[name]:
        check(manifest, version)


def test_a_misspelt_field_is_found_at_every_depth() -> None:
    service = copy.deepcopy(one(MADE["chart"], "Service"))
    service["spec"]["clusterIp"] = service["spec"].pop("clusterIP")
    with pytest.raises(ValidationError):
        check(service, KUBERNETES[0])
    for path in (["spec", "entryPoint"], ["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "container"]):
        broken: Any = copy.deepcopy(one(MADE["rayjob.yaml"], "RayJob"))  # Any: YAML
        section = broken
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = "x"
        with pytest.raises(ValidationError):
            check(broken, KUBERNETES[0])


@every
def test_no_pod_runs_as_root_or_may_become_it(name: str) -> None:
    for pod in pods(MADE[name]):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@every
def test_every_container_asks_for_what_it_needs_from_a_pinned_image(name: str) -> None:
    for pod in pods(MADE[name]):
        for container in pod["containers"]:
            assert container["image"].endswith(":0.1.0")
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]


@every
def test_secrets_are_named_and_never_held(name: str) -> None:
    assert [manifest for manifest in MADE[name] if manifest["kind"] == "Secret"] == []
    for pod in pods(MADE[name]):
        for variable in pod["containers"][0].get("env", []):
            if any(word in variable["name"] for word in ("TOKEN", "KEY", "SECRET")):
                assert "secretKeyRef" in variable["valueFrom"], variable


@with_ray
def test_ray_asks_for_a_token_and_runs_the_version_that_is_installed(name: str) -> None:
    spec = ray_spec(MADE[name])
    assert spec["authOptions"] == {"mode": "token", "secretName": "trireme-ray-token"}
    assert f"ray=={spec['rayVersion']}\n" in (ROOT / "deploy/requirements-cpu.txt").read_text()


@with_ray
def test_only_rollout_workers_are_scaled(name: str) -> None:
    spec = ray_spec(MADE[name])
    assert spec["enableInTreeAutoscaling"]
    learner, rollout = spec["workerGroupSpecs"]
    assert (learner["groupName"], rollout["groupName"]) == ("learner", "rollout")
    assert learner["minReplicas"] == learner["maxReplicas"]
    assert rollout["minReplicas"] < rollout["maxReplicas"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", ["rayjob.yaml", "chart", "chart, run only"])
def test_the_job_trains_what_its_config_map_says(name: str, tmp_path: Path) -> None:
    manifests = MADE[name]
    if name == "chart, run only":
        manifests = render(
            {"reward": {"enabled": False}, "run": {"resume": True, "config": _run_with_own_rewards(manifests)}}
        )
    config, resume = _job_config(manifests, tmp_path)
    assert config.cluster.address == "auto"
    assert config.run.dir.is_relative_to("/runs")
    assert resume == (name == "chart, run only")
    if name == "chart":
        service = one(manifests, "Service")
        assert config.reward.addresses == (f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}",)


@pytest.mark.parametrize("name", ["rayjob.yaml", "chart"])
def test_the_job_fits_the_cluster_it_starts_with(name: str, tmp_path: Path) -> None:
    """A run that needs more than the cluster has when it starts is refused before anything is added."""
    config, _ = _job_config(MADE[name], tmp_path)
    learner, rollout = ray_spec(MADE[name])["workerGroupSpecs"]
    assert config.learner.num_ranks <= learner["minReplicas"]
    assert config.rollout.num_workers <= rollout["minReplicas"]
    for group, cpus, gpus in (
        (learner, config.cluster.cpus_per_learner_rank, config.cluster.gpus_per_learner_rank),
        (rollout, config.rollout.cpus_per_worker, config.rollout.gpus_per_worker),
    ):
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert cpus is not None
        assert cpus <= int(resources["requests"]["cpu"])
        assert gpus == resources["limits"]["nvidia.com/gpu"]


@with_ray
def test_every_node_sees_the_runs_folder(name: str) -> None:
    for pod in pods(MADE[name]):
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        if pod["containers"][0]["name"].startswith("ray-"):
            assert mounts["runs"] == "/runs"


@pytest.mark.parametrize("name", ["chart", "chart, changed", "chart, rewards only", "chart, secured"])
def test_reward_servers_serve_what_the_values_say_and_drain_before_they_are_killed(name: str, tmp_path: Path) -> None:
    deployment = one(MADE[name], "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["args"] == ["reward", "serve", "/etc/trireme/rewards.yaml"]
    config_map = next(m for m in MADE[name] if m["kind"] == "ConfigMap" and "rewards.yaml" in m["data"])
    (tmp_path / "rewards.yaml").write_text(config_map["data"]["rewards.yaml"])
    served = read_target(str(tmp_path / "rewards.yaml"), {})
    assert served.server.port == container["ports"][0]["containerPort"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause + served.server.drain_s < pod["terminationGracePeriodSeconds"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    for service in served.services:
        file, separator, function = service.name.removeprefix("/etc/trireme/").partition(":")
        assert not separator or f"def {function}(" in config_map["data"][file]


def test_secured_reward_servers_ask_for_what_the_run_shows(tmp_path: Path) -> None:
    manifests = MADE["chart, secured"]
    served, run = _served(manifests, tmp_path), _job_config(manifests, tmp_path)[0].reward
    server = one(manifests, "Deployment")["spec"]["template"]["spec"]
    head = ray_spec(manifests)["headGroupSpec"]["template"]["spec"]

    assert not served.allow_plaintext and not run.allow_plaintext
    assert _secret(server, served.tls_certificate) == _secret(server, served.tls_key) == "reward-tls"
    assert _secret(server, served.tls_client_ca) == _secret(head, run.tls_ca) == "reward-tls"
    assert _secret(head, run.tls_certificate) == _secret(head, run.tls_key) == "run-tls"
    assert _secret(server, served.token_file) == _secret(head, run.token_file) == "reward-token"
    shown = next(v["secret"]["items"] for v in head["volumes"] if v["name"] == "reward-tls")
    assert [item["key"] for item in shown] == ["ca.crt"], "the servers' key is at the servers alone"
    container = server["containers"][0]
    ports = {container[f"{kind}Probe"]["grpc"]["port"] for kind in ("startup", "readiness", "liveness")}
    assert ports == {served.health_port}


def test_a_cluster_that_stays_has_what_its_runs_show() -> None:
    head = ray_spec(MADE["chart, secured cluster"])["headGroupSpec"]["template"]["spec"]
    assert {_secret(head, Path(f"/etc/trireme-reward/{kind}/x")) for kind in ("tls", "client", "token")} == {
        "reward-tls", "run-tls", "reward-token",
    }  # fmt: skip


def test_the_sandbox_of_code_rewards_lifts_two_profiles_of_one_container_and_nothing_else() -> None:
    def container(values: dict[str, object]) -> dict[str, Any]:  # Any: YAML
        manifests = render({"reward": values})
        for manifest in manifests:
            check(manifest, KUBERNETES[0])
        (found,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
        return dict(found["securityContext"])

    lifted = {name: {"type": "Unconfined"} for name in ("seccompProfile", "appArmorProfile")}
    assert container({"sandbox": True}) == container({}) | lifted


def test_reward_servers_answer_their_own_runs_only() -> None:
    manifests = MADE["chart"]
    policy = next(m for m in manifests if m["kind"] == "NetworkPolicy" and m["metadata"]["name"] == "demo-reward")
    assert policy["spec"]["egress"] == []
    (allowed,) = policy["spec"]["ingress"][0]["from"]
    head = ray_spec(manifests)["headGroupSpec"]["template"]["metadata"]["labels"]
    assert allowed["podSelector"]["matchLabels"].items() <= head.items()
    server = one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= server.items()


def test_metrics_are_served_where_prometheus_is_told_to_look_and_nobody_else_may(tmp_path: Path) -> None:
    metrics = {"port": 9191, "from": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]}
    manifests = render({"reward": {"metrics": metrics}})
    for manifest in manifests:
        check(manifest, KUBERNETES[0])
    served = _served(manifests, tmp_path)
    assert (served.metrics_host, served.metrics_port) == ("0.0.0.0", 9191)
    template = one(manifests, "Deployment")["spec"]["template"]
    assert {name: value for name, value in template["metadata"]["annotations"].items() if "prometheus" in name} == {
        "prometheus.io/scrape": "true", "prometheus.io/port": "9191", "prometheus.io/path": "/metrics",
    }  # fmt: skip
    assert {"name": "metrics", "containerPort": 9191} in template["spec"]["containers"][0]["ports"]
    rules = next(m for m in manifests if m["kind"] == "NetworkPolicy")["spec"]["ingress"]
    assert [(rule["ports"], rule["from"]) for rule in rules[1:]] == [([{"port": "metrics"}], metrics["from"])]


def test_metrics_that_are_not_wanted_leave_no_trace(tmp_path: Path) -> None:
    manifests = render({"reward": {"metrics": {"enabled": False}}})
    assert _served(manifests, tmp_path).metrics_port is None
    template = one(manifests, "Deployment")["spec"]["template"]
    assert "prometheus.io/scrape" not in template["metadata"]["annotations"]
    assert [port["name"] for port in template["spec"]["containers"][0]["ports"]] == ["grpc"]
    assert len(next(m for m in manifests if m["kind"] == "NetworkPolicy")["spec"]["ingress"]) == 1


def test_a_changed_reward_replaces_the_pods() -> None:
    def checksum(values: dict[str, object]) -> str:
        template = one(render(values), "Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) == checksum({})
    assert checksum({}) != checksum({"reward": {"services": [{"name": "exact_match"}]}})


@pytest.mark.parametrize(
    "values",
    [
        {"reward": {"image": {"repository": "trireme/reward", "tag": "latest"}}},
        {"reward": {"replica": 3}},
        {"reward": {"security": {"clientTlsSecret": "run-tls", "tlsSecret": ""}}},
        {"reward": {"security": {"tokenSecret": "Not A Name"}}},
        {"reward": {"metrics": {"from": []}}},  # Which would be everybody.
        {"reward": {"metrics": {"port": 80}}},
        {"ray": {"kind": "service"}},
        {"secrets": {"rayTokenValue": "hunter2"}},
        {"storage": {"size": "many"}},
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(helm_python.HelmValuesError):
        render(values)


def test_helm_finds_nothing_to_complain_of() -> None:
    report = helm_python.lint(CHART, strict=True)
    assert report["errors"] == []
    assert [m["error"] for m in report["messages"] if m["severity"] >= 2] == []


def _served(manifests: list[Manifest], folder: Path) -> RewardServerConfig:
    """The settings of the reward servers."""
    config_map = next(m for m in manifests if m["kind"] == "ConfigMap" and "rewards.yaml" in m["data"])
    (folder / "rewards.yaml").write_text(config_map["data"]["rewards.yaml"])
    return read_target(str(folder / "rewards.yaml"), {}).server


def _secret(pod: Manifest, file: Path | None) -> str:
    """The name of the Secret that a file of the pod's first container comes from."""
    mounts = pod["containers"][0]["volumeMounts"]
    (volume,) = [mount["name"] for mount in mounts if file is not None and Path(mount["mountPath"]) == file.parent]
    return str(next(v["secret"]["secretName"] for v in pod["volumes"] if v["name"] == volume))


def _job_config(manifests: list[Manifest], folder: Path) -> tuple[RunConfig, bool]:
    """The configuration that the job's command would run with, and whether it resumes."""
    program, command, mounted, *flags = shlex.split(one(manifests, "RayJob")["spec"]["entrypoint"])
    assert (program, command, mounted) == ("trireme", "train", "/etc/trireme/run.yaml")
    text = next(m["data"]["run.yaml"] for m in manifests if m["kind"] == "ConfigMap" and "run.yaml" in m["data"])
    (folder / "run.yaml").write_text(text)
    resume, flags = take_switch(flags, "--resume")
    return load_config(RunConfig, [str(folder / "run.yaml"), *flags], prog="", summary=""), resume


def _run_with_own_rewards(manifests: list[Manifest]) -> str:
    text = one(manifests, "ConfigMap")["data"]["run.yaml"]
    return yaml.safe_dump({**yaml.safe_load(text), "reward": {"services": [{"name": "math_answer"}]}})
