"""The files in examples/ against the schemas of what reads them, and against cluster.yaml.

No cloud and no Kubernetes is asked. examples/local.yaml is also brought up, in tests/hosts.
"""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from launched import COMMANDS, assert_bash
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config

from raybust import methods
from raybust.cli import cli
from raybust.config import compose, leaves_of_arguments
from raybust.search.race import Race
from raybust.stages import gate_rules, serving

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
LAUNCHED = ("gcp", "local")


def read(name):
    return yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())


def aws():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def only(commands, part):
    (found,) = (command for command in commands if part in command)
    return found


def test_every_example_is_tested_here():
    names = {path.name for path in EXAMPLES.iterdir()}
    files = {"gcp.yaml", "kuberay-serve.yaml", "kuberay.yaml", "local.yaml", "slurm.sh"}
    gates = {"gate.yaml", "gate-action.yaml"}
    others = {"eight_methods.yaml", "notebooks", "plugin"}
    assert names == files | gates | others, "notebooks in tests/cluster"


def test_the_sweep_of_eight_methods_trains_every_seed():
    done = CliRunner().invoke(cli, ["tune", str(EXAMPLES / "eight_methods.yaml"), "--dry-run"])
    assert done.exit_code == 0, done.output
    plain = read("eight_methods")
    names = plain["search"]["method.name"]["choice"]
    assert len(names) == plain["tune"]["trials"] == plain["tune"]["finalists"] == 8
    assert set(names) <= set(methods.names())
    race = Race({0: [[1.0], [1.0]], 1: [[0.0], [0.1]], 2: [[0.5]]}, plain["tune"]["race_level"])
    assert race.standing() == [0, 2, 1], "nobody is left behind"


def test_the_gate_is_one_and_the_workflow_runs_it():
    gate = gate_rules.read_gate(EXAMPLES / "gate.yaml")
    assert gate.reference == "models:/digits@best"
    assert gate.looks(10_000) == [200, 400, 800]
    assert gate.looks(359) == [200, 359]
    assert [rule.radius for rule in gate.rules] == [0.5, None, 8 / 255, None]
    steps = read("gate-action")["jobs"]["gate"]["steps"]
    (command,) = [step["run"] for step in steps if "raybust gate" in step.get("run", "")]
    assert_bash(command)
    options = {option for one in cli.commands["gate"].params for option in one.opts}
    assert set(re.findall(r"--[\w-]+", command)) <= options


# --- read by `ray up` -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAUNCHED)
def test_valid_for_ray(name):
    validate_config(prepare_config(read(name)))


@pytest.mark.parametrize("name", LAUNCHED)
def test_commands_are_bash_as_ray_wraps_them(name):
    for kind in COMMANDS:
        for command in read(name).get(f"{kind}_commands", []):
            assert_bash(command)


@pytest.mark.parametrize("name", LAUNCHED)
def test_same_parts_as_on_aws(name):
    """What the providers share is the same text, so that a repair cannot reach one file only."""
    ours, theirs = read(name), aws()
    assert ours["file_mounts"] == theirs["file_mounts"]
    assert ours["rsync_exclude"] == theirs["rsync_exclude"]
    assert ours["worker_start_ray_commands"] == theirs["worker_start_ray_commands"]
    assert only(ours["setup_commands"], "uv venv") == only(theirs["setup_commands"], "uv venv")
    (start,) = (c for c in ours["head_start_ray_commands"] if "ray start" in c)
    assert start == only(theirs["head_start_ray_commands"], "ray start")
    if name == "gcp":
        unit = only(ours["head_setup_commands"], "mlflow server")
        assert unit == only(theirs["head_setup_commands"], "mlflow server")
        environment = only(ours["setup_commands"], "raybust_env")
        assert environment == only(theirs["setup_commands"], "raybust_env")


@pytest.mark.parametrize("name", LAUNCHED)
def test_dashboard_and_token(name):
    text = (EXAMPLES / f"{name}.yaml").read_text()
    assert re.findall(r"--dashboard-host[= ](\S+)", text) == ["127.0.0.1"]
    assert text.count("RAY_AUTH_MODE=token ray start") == 2
    assert "RAY_AUTH_TOKEN" not in text
    assert not re.search(r"0\.0\.0\.0/0|--host 0\.0\.0\.0|disable-security", text)
    assert "# FILL IN" in text


def test_local_services_listen_on_loopback_alone():
    services = only(read("local")["head_setup_commands"], "mlflow server")
    assert re.findall(r"--host (\S+)", services) == ["127.0.0.1"]
    assert re.findall(r"-R (\S+) ", services) == ["127.0.0.1:5000:127.0.0.1:5000"]
    assert "--allowed-hosts 'localhost:*,127.0.0.1:*'" in services


def test_google_nodes_are_in_the_users_network_and_workers_are_spot():
    cluster = read("gcp")
    # Ray takes the default network's subnet unless every node type names its own.
    for name, kind in cluster["available_node_types"].items():
        (interface,) = kind["node_config"]["networkInterfaces"]
        assert interface["subnetwork"].endswith("/subnetworks/raybust")
        spot = kind["node_config"].get("scheduling", {}).get("provisioningModel") == "SPOT"
        assert spot == (name != cluster["head_node_type"])
    rules = re.findall(r"--allow (\S+) --source-ranges (\S+)", (EXAMPLES / "gcp.yaml").read_text())
    assert rules == [("tcp:22", "$MY_CIDR"), ("all", "10.20.0.0/20")]


# --- Kubernetes -----------------------------------------------------------------------------------

# Fields of KubeRay 1.6's ray.io/v1 (its API reference) that a RayJob of ours may use.
RAY_JOB = {"entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
           "rayClusterSpec", "activeDeadlineSeconds", "backoffLimit", "runtimeEnvYAML"}  # fmt: skip
RAY_CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions",
               "headGroupSpec", "workerGroupSpecs"}  # fmt: skip
GROUP = {"rayStartParams", "template", "groupName", "replicas", "minReplicas", "maxReplicas"}
POD = {"containers", "initContainers", "volumes", "securityContext"}
CONTAINER = {"name", "image", "workingDir", "env", "resources", "volumeMounts", "command", "args",
             "ports", "readinessProbe"}  # fmt: skip


def kinds():
    documents = yaml.safe_load_all((EXAMPLES / "kuberay.yaml").read_text())
    return {document["kind"]: document for document in documents}


def pods():
    cluster = kinds()["RayJob"]["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"], kinds()["Deployment"]["spec"]]
    return [group["template"]["spec"] for group in groups]


def test_ray_job_has_known_fields():
    job = kinds()["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    cluster = job["spec"]["rayClusterSpec"]
    assert job["spec"].keys() <= RAY_JOB
    assert cluster.keys() <= RAY_CLUSTER
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group.keys() <= GROUP
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for pod in pods():
        assert pod.keys() <= POD
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container.keys() <= CONTAINER
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert all(isinstance(item["value"], str) for item in container.get("env", ()))


def test_rays_autoscaler_reads_the_ray_job():
    cluster = kinds()["RayJob"]["spec"]["rayClusterSpec"]
    metadata = {"name": "raybust", "namespace": "default"}
    derived = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": cluster})
    types = derived["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 1
    assert types["gpu"]["resources"]["GPU"] == 1
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 4)
    validate_config(prepare_config({**derived, "cluster_name": "raybust"}))


def test_kubernetes_is_pinned_closed_and_durable():
    found = kinds()
    lock = (ROOT / "requirements.lock").read_text()
    cluster = found["RayJob"]["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}\n" in lock
    assert cluster["authOptions"] == {"mode": "token"}
    assert found["Service"]["spec"]["type"] == "ClusterIP"
    (rule,) = found["NetworkPolicy"]["spec"]["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app": "raybust"}}}]
    (server,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert any(text.startswith("--allowed-hosts=raybust-mlflow:5000,") for text in server["args"])
    assert found["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods():
        assert {"claimName": "raybust"} in [v.get("persistentVolumeClaim") for v in pod["volumes"]]
    assert found["RayJob"]["spec"]["entrypoint"].startswith("raybust tune ")


def test_ray_service_serves_by_the_same_cluster():
    service = read("kuberay-serve")
    job = kinds()["RayJob"]["spec"]["rayClusterSpec"]
    cluster = service["spec"]["rayClusterConfig"]
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    assert service["spec"].keys() == {"serveConfigV2", "rayClusterConfig"}
    assert cluster.keys() <= RAY_CLUSTER
    for key in ("rayVersion", "authOptions", "autoscalerOptions"):
        assert cluster[key] == job[key]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert group.keys() <= GROUP
        assert pod.keys() <= POD
        (container,) = pod["containers"]
        assert container.keys() <= CONTAINER
        names = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= names


def test_ray_serve_reads_the_config_of_the_service():
    schema = pytest.importorskip("ray.serve.schema", reason="needs raybust[serve]")
    text = read("kuberay-serve")["spec"]["serveConfigV2"]
    config = schema.ServeDeploySchema.model_validate(yaml.safe_load(text))
    (application,) = config.applications
    assert application.import_path == "raybust.stages.serving:build"
    assert set(application.args) <= set(serving.KEYS)
    assert serving.replicas_of(application.args["replicas"]) == (1, 4)
    assert application.args["token_file"] == "/etc/raybust/token"
    compose([*leaves_of_arguments(application.args["settings"])], methods.get)


# --- Slurm ----------------------------------------------------------------------------------------


def test_slurm_script():
    path = EXAMPLES / "slurm.sh"
    text = path.read_text()
    subprocess.run(["bash", "-n", path], check=True)
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    assert directives["ntasks-per-node"] == "1", "one Ray a node"
    assert "RAY_AUTH_MODE=token" in text
    assert "set -euo pipefail" in text
    # All directives stand before the first command, or Slurm does not read them.
    assert text.rindex("#SBATCH") < text.index("set -euo")
