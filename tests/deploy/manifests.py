"""The manifests of `deploy/`: read as they lie, or rendered from the chart by Helm's own library, and checked.

It must not know what a manifest is for. Invariant: `check` refuses any field that its schema does not name, and
no schema is downloaded.
"""

import functools
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

Manifest = dict[str, Any]  # Any: YAML

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/trireme"
KUBERAY = ROOT / "deploy/kuberay"
KUBERNETES = ("1.30", "1.37")
"""The oldest version that the chart accepts, and the newest that is known here."""
_KUBERAY_SCHEMA = Path(__file__).with_name("kuberay.schema.json")


def read(path: Path) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(path.read_text()) if manifest]


def render(values: Mapping[str, object] | None = None) -> list[Manifest]:
    """What `helm template demo deploy/helm/trireme` prints with these values."""
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(dict(values or {}))
        files = chart.render(dict(values or {}), name="demo", namespace="team")
    texts = [text for name, text in sorted(files.items()) if name.endswith(".yaml")]
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


def one(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def ray_spec(manifests: list[Manifest]) -> Manifest:
    """The spec of the Ray cluster among the manifests, a job's or one of its own."""
    (spec,) = [m["spec"] for m in manifests if m["apiVersion"] == "ray.io/v1"]
    return dict(spec.get("rayClusterSpec", spec))


def pods(manifests: list[Manifest]) -> list[Manifest]:
    """The spec of every pod that the manifests make, straight or through KubeRay."""
    found: list[Manifest] = [m["spec"]["template"]["spec"] for m in manifests if m["kind"] == "Deployment"]
    for manifest in manifests:
        if manifest["apiVersion"] == "ray.io/v1":
            spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
            found += [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    return found


def check(manifest: Manifest, version: str) -> None:
    """Raise `jsonschema.ValidationError` when this version of Kubernetes, or KubeRay, would not know the manifest."""
    if manifest["apiVersion"].startswith("ray.io/"):
        _kuberay_validator(version).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


@functools.cache
def _kuberay_validator(version: str) -> Draft202012Validator:
    folder = importlib.resources.files("kubernetes_validate") / f"kubernetes-json-schema/v{version}.0-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text())
    registry: Registry[Any] = Resource.from_contents(definitions) @ Registry()  # Any: JSON
    return Draft202012Validator(json.loads(_KUBERAY_SCHEMA.read_text()), registry=registry)
