"""launch/: scripts that a shell can read, and a manifest whose variables are those that training
looks for.
"""

import string
import subprocess
from pathlib import Path

import pytest
import yaml

from caphuman_jax.runtime.distributed import distributed_arguments

LAUNCH = Path(__file__).parents[1] / "launch"


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_can_be_read(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o111


def test_the_manifest_tells_each_pod_who_it_is():
    text = string.Template((LAUNCH / "gke.yaml").read_text()).substitute(
        IMAGE="image",
        NODES="4",
        GPUS="8",
        CLAIM="data",
        RUN="run-1",
        ARGUMENTS="--config sd15 --workdir /data/run",
    )
    service, job = yaml.safe_load_all(text)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]} | {
        "JOB_COMPLETION_INDEX": "3"
    }
    found = distributed_arguments(environment)
    assert found["num_processes"] == job["spec"]["completions"] == 4 and found["process_id"] == 3
    # Kubernetes names pod 0 of an Indexed Job NAME-0, in the subdomain of a headless service.
    host, port = found["coordinator_address"].split(":")
    assert (
        host == f"{job['metadata']['name']}-0.{pod['subdomain']}"
        and pod["subdomain"] == service["metadata"]["name"]
    )
    assert service["spec"]["clusterIP"] is None or service["spec"]["clusterIP"] == "None"
    ignored = next(
        rule
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        if rule.get("onExitCodes", {}).get("values") == [75]
    )
    assert ignored["action"] == "Ignore"
