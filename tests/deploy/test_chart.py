"""The chart, rendered by Helm and held against Kubernetes' own schemas."""

from functools import cache
from typing import Any

import pytest
import yaml

from service.settings import Settings, read_settings
from tests.conftest import ROOT
from tests.deploy.tools import run

CHART = str(ROOT / "deploy/helm/featuremaps")
EVERYTHING = (
    "keys.secret=callers,redis.enabled=true,models.image=models:1,gpu.count=1,autoscaling.queueDepth=4,"
    "podAnnotations.a=b,nodeSelector.disk=fast,service.type=LoadBalancer,settings.max_in_flight=128"
)
WAYS = {
    "open": "allowAnonymous=true",
    "everything": EVERYTHING,
    "a claim and another's Redis": "keys.secret=callers,models.claim=models,redis.secret=redis",
    "nothing extra": "allowAnonymous=true,autoscaling.enabled=false,networkPolicy.enabled=false,"
    "disruptionBudget.enabled=false,redis.url=redis://there:6379/0",
}


@cache
def rendered(values: str) -> list[dict[str, Any]]:
    done = run("helm", "template", "rel", CHART, "--set", values)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def one(documents: list[dict[str, Any]], kind: str, end: str = "featuremaps") -> dict[str, Any]:
    (found,) = [x for x in documents if x["kind"] == kind and x["metadata"]["name"].endswith(end)]
    return found


def container(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_helm_has_nothing_to_say() -> None:
    done = run("helm", "lint", "--strict", CHART, "--set", "allowAnonymous=true")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("way", WAYS)
def test_kubernetes_takes_what_it_renders(way: str) -> None:
    done = run("helm", "template", "rel", CHART, "--set", WAYS[way])
    valid = run("kubernetes-validate", "--strict", "/dev/stdin", given=done.stdout)
    assert valid.returncode == 0, valid.stdout + valid.stderr
    assert "deployment/rel-featuremaps" in valid.stdout + valid.stderr


def test_nobody_is_let_in_without_a_word() -> None:
    done = run("helm", "template", "rel", CHART)
    assert done.returncode != 0
    assert "set keys.secret, or allowAnonymous=true" in done.stderr


@pytest.mark.parametrize(
    "value", ["nonsense=1", "settings.keys=1", "replicas=-1", "redis.url=http://x", "gpu.count=x"]
)
def test_a_value_that_does_not_exist_or_fit_is_refused(value: str) -> None:
    done = run("helm", "template", "rel", CHART, "--set", f"allowAnonymous=true,{value}")
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_the_settings_that_it_makes_exist(way: str) -> None:
    names = {x["name"].removeprefix("FEATUREMAPS_").lower() for x in container(rendered(WAYS[way]))["env"]}
    assert names
    assert names - set(Settings.model_fields) == set()


def test_settings_reach_the_service_as_they_are_written() -> None:
    written = {
        "max_stall_s": 0.5,
        "image_max_age_s": 1.0e-9,
        "drain_grace_s": 7,
        "max_in_flight_bytes": 2147483648,
        "image_store_bytes": 1.0e12,
        "allow_admin": True,
        "rate_limit": "100/minute",
    }
    values = yaml.safe_dump({"allowAnonymous": True, "settings": written})
    done = run("helm", "template", "rel", CHART, "--values", "-", given=values)
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    environ = {variable["name"]: variable["value"] for variable in container(documents)["env"]}
    read = read_settings({}, environ)
    assert {name: getattr(read, name) for name in written} == written


def test_every_container_is_confined() -> None:
    documents = rendered(EVERYTHING)
    for deployment in (one(documents, "Deployment"), one(documents, "Deployment", "redis")):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["enableServiceLinks"] is pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        for each in [*pod["containers"], *pod.get("initContainers", [])]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert each["resources"]["limits"]["memory"]


def test_what_selects_pods_selects_them() -> None:
    documents = rendered(f"{EVERYTHING},serviceMonitor.enabled=true")
    service = one(documents, "Service")
    labels = one(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        service["spec"]["selector"],
        one(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    monitor = one(documents, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


def test_a_pod_may_end_what_it_has_begun() -> None:
    documents = rendered(WAYS["open"])
    grace = one(documents, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    (_, pause) = container(documents)["lifecycle"]["preStop"]["exec"]["command"]
    fields = Settings.model_fields
    drains = fields["drain_grace_s"].default if "drain_grace_s" in fields else 0
    assert grace > int(pause) + drains + fields["max_timeout_s"].default


def test_without_redis_the_service_asks_nobody_anything() -> None:
    assert one(rendered(WAYS["open"]), "NetworkPolicy")["spec"]["egress"] == []


@pytest.mark.parametrize("way", WAYS)
def test_a_client_stays_with_the_replica_that_keeps_its_images_where_they_are_not_shared(way: str) -> None:
    documents = rendered(WAYS[way])
    spec = one(documents, "Service")["spec"]
    (store,) = [x for x in container(documents)["env"] if x["name"] == "FEATUREMAPS_IMAGE_STORE"]
    # One in a Secret is Redis, too.
    is_shared = store.get("value", "redis://").startswith("redis://")
    assert spec.get("sessionAffinity", "None") == ("None" if is_shared else "ClientIP")
    if not is_shared:
        kept_s = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"]
        assert kept_s >= Settings.model_fields["image_max_age_s"].default


def test_the_containers_for_kserve_are_ones_that_kubernetes_takes() -> None:
    runtime = yaml.safe_load((ROOT / "deploy/kserve/serving-runtime.yaml").read_text())
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "kserve"},
        "spec": {"containers": runtime["spec"]["containers"], "volumes": runtime["spec"]["volumes"]},
    }
    valid = run("kubernetes-validate", "--strict", "/dev/stdin", given=yaml.safe_dump(pod))
    assert valid.returncode == 0, valid.stdout + valid.stderr
