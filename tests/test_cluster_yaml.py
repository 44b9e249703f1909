"""cluster.yaml against Ray's schema, and what a schema cannot see: nothing open, nothing secret.

Neither the network nor AWS is touched; test_cluster_aws.py brings the file to a server like it.
"""

import fnmatch
import re
import tomllib
from pathlib import Path
from unittest import mock

import jsonschema
import pytest
import yaml
from launched import COMMANDS, assert_bash
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "cluster.yaml").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def cluster():
    return yaml.safe_load(TEXT)


def locked(package):
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return next(line.split("==")[1] for line in lines if line.startswith(f"{package}=="))


def commands(cluster, *kinds):
    return [command for kind in kinds or COMMANDS for command in cluster[f"{kind}_commands"]]


def workers(cluster):
    types = cluster["available_node_types"]
    return {name: kind for name, kind in types.items() if name != cluster["head_node_type"]}


def only(cluster, part, *kinds):
    """The one command that contains part."""
    (found,) = (command for command in commands(cluster, *kinds) if part in command)
    return found


# --- Ray's schema ---------------------------------------------------------------------------------


def test_valid_for_ray(cluster):
    validate_config(prepare_config(cluster))


def misspell_key(cluster):
    cluster["max_worker"] = cluster.pop("max_workers")


def misspell_ssh_user(cluster):
    cluster["auth"]["ssh_usr"] = cluster["auth"].pop("ssh_user")


def misspell_node_key(cluster):
    head = cluster["available_node_types"]["head"]
    head["node_confg"] = head.pop("node_config")


def text_for_number(cluster):
    cluster["idle_timeout_minutes"] = "ten"


def fractional_cpu(cluster):
    cluster["available_node_types"]["head"]["resources"]["CPU"] = 0.5


def command_not_text(cluster):
    cluster["setup_commands"].append({"run": "true"})


@pytest.mark.parametrize(
    "spoil",
    [
        misspell_key,
        misspell_ssh_user,
        misspell_node_key,
        text_for_number,
        fractional_cpu,
        command_not_text,
    ],
)
def test_schema_refuses(cluster, spoil):
    spoil(cluster)
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(cluster))


def test_unknown_head_type_is_refused(cluster):
    cluster["head_node_type"] = "haed"
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config(cluster))


# --- who can reach it -----------------------------------------------------------------------------


def test_every_node_is_in_the_users_group_alone(cluster):
    assert "security_group" not in cluster["provider"]
    groups = [
        kind["node_config"]["SecurityGroupIds"] for kind in cluster["available_node_types"].values()
    ]
    assert all(group == groups[0] and len(group) == 1 for group in groups)
    assert all(
        "NetworkInterfaces" not in kind["node_config"]
        for kind in cluster["available_node_types"].values()
    )


def test_the_group_to_make_admits_ssh_from_one_address_and_itself():
    assert not re.search(r"0\.0\.0\.0|::/0", TEXT)
    plain = re.sub(r"\\\n#\s*", "", TEXT)
    rules = re.findall(r"authorize-security-group-ingress .*", plain)
    assert [re.sub(r".*--group-id \$GROUP\s+", "", rule) for rule in rules] == [
        "--protocol tcp --port 22 --cidr $MY_CIDR",
        "--protocol all --source-group $GROUP",
    ]
    # A documentation address (RFC 5737) that lets nobody in until it is changed.
    assert re.findall(r"MY_CIDR=(\S+)(.*)", TEXT) == [("203.0.113.7/32", mock.ANY)]
    assert "CHANGE THIS" in re.search(r"MY_CIDR=.*", TEXT).group()


def test_dashboard_on_loopback(cluster):
    start = only(cluster, "ray start --head")
    assert re.findall(r"--dashboard-host[= ](\S+)", start) == ["127.0.0.1"]
    assert TEXT.count("--dashboard-host") == 1


def test_mlflow_listens_inside_the_group_and_refuses_other_names(cluster):
    unit = only(cluster, "mlflow server", "head_setup")
    assert re.findall(r"--host (\S+)", unit) == ["raybust-head"]
    hosts = re.search(r"--allowed-hosts (\S+)", unit).group(1).split(",")
    assert hosts == ["raybust-head:5000", "localhost:*", "127.0.0.1:*"]
    assert "disable-security" not in TEXT
    # The same name on both sides: the head's own private address, and the one that Ray tells.
    assert "$ADDRESS raybust-head" in only(cluster, "/etc/hosts", "head_setup")
    assert "$RAY_HEAD_IP raybust-head" in only(cluster, "/etc/hosts", "worker_setup")
    assert "MLFLOW_TRACKING_URI=http://raybust-head:5000" in only(cluster, "raybust_env", "setup")


def test_instance_metadata_needs_a_session(cluster):
    # A request forged through MLflow or a dataset URL must not fetch the head's AWS role.
    for kind in cluster["available_node_types"].values():
        assert kind["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}


# --- secrets and foreign names --------------------------------------------------------------------


def test_token_by_file_mount_only(cluster):
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for start in (only(cluster, "ray start --head"), only(cluster, "ray start --address")):
        assert "RAY_AUTH_MODE=token" in start
    assert "RAY_AUTH_TOKEN" not in TEXT


SECRETS = {
    "AWS key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|aws_secret_access_key|aws_credentials",
    "private key": r"BEGIN [A-Z ]*PRIVATE KEY",
    "long random text": r"(?<![\w/.-])(?=\w*\d)(?=\w*[a-zA-Z])[A-Za-z0-9+_]{28,}(?![\w/.-])",
    "password in a URI": r"\w+://[^\s/:@]+:[^\s/@]+@",
    "password": r"(?i)\b(password|passwd|secret|token)\s*[=:]\s*[^\s#]",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret(kind):
    assert not re.search(SECRETS[kind], TEXT)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("AWS key", "AKIA" + "B2" * 8),
        ("private key", "-----BEGIN RSA PRIVATE KEY-----"),
        ("long random text", "x: " + "a1" * 20),
        ("password in a URI", "postgresql://me:hunter2@db/mlflow"),
        ("password", "token: abc"),
    ],
)
def test_secrets_would_be_seen(kind, text):
    assert re.search(SECRETS[kind], text)


def test_no_package_index_and_no_path_of_a_developer():
    assert not re.search(r"index-url|find-links|trusted-host|pypi|--extra-index", TEXT, re.I)
    assert not re.search(r"/work\b|/root\b|/Users/|/home/(?!ubuntu/venv/)", TEXT)
    hosts = set(re.findall(r"https?://([^\s/:]+)", TEXT))
    assert hosts == {"127.0.0.1", "raybust-head"}


# --- what runs where ------------------------------------------------------------------------------


def test_head_on_demand_without_gpu(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["GPU"] == 0
    assert head["resources"]["CPU"] <= 4
    assert head.get("max_workers", 0) == 0


def test_workers_are_spot_gpu_nodes_that_go_when_idle(cluster):
    assert len(workers(cluster)) >= 2
    for kind in workers(cluster).values():
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert kind["resources"]["GPU"] >= 1
        assert kind["min_workers"] == 0
        assert 0 < kind["max_workers"] <= cluster["max_workers"]
    assert 0 < cluster["idle_timeout_minutes"] <= 30
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_versions_are_the_locks(cluster):
    install = only(cluster, "uv venv", "setup")
    assert "-r ~/raybust/requirements.lock" in install
    assert "--no-deps ~/raybust\n" in install
    (python,) = re.findall(r"--python (\d+\.\d+\.\d+)\b", install)
    oldest = re.search(r">=([\d.]+)", PYPROJECT["project"]["requires-python"]).group(1)
    version = [int(part) for part in python.split(".")]
    assert version >= [int(part) for part in oldest.split(".")]
    # Ray is the lock's: installed from it, named nowhere else, and the lock pins one exact version.
    assert re.fullmatch(r"\d+\.\d+\.\d+", locked("ray"))
    assert set(re.findall(r"\bray(?:\[[^]]*\])?[=<>~]=?([\d.]+)", TEXT)) <= {locked("ray")}
    # What is installed beside the lock is pinned too, and may not move what the lock pins.
    for command in commands(cluster, "setup", "head_setup"):
        for extra in re.findall(r"pip install (.*)", command.replace("\\\n", "")):
            held = "requirements.lock" in extra or "--no-deps" in extra
            assert held or re.search(r"\buv==[\d.]+", extra)
    assert locked("boto3"), "Ray's autoscaler on the head needs it"


def test_environment_of_the_processes(cluster):
    environment = only(cluster, "raybust_env", "setup")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "MLFLOW_TRACKING_URI"):
        assert environment.count(f"export {name}=") == 1
    assert "export RAY_AUTH_MODE=token" in environment
    assert "export RAY_USAGE_STATS_ENABLED=0" in environment
    # `ray up` switches Ray's usage report on for the head, over that variable.
    assert "--disable-usage-stats" in only(cluster, "ray start --head")
    # And it exports OMP_NUM_THREADS=1, which every training process would inherit.
    assert "OMP_NUM_THREADS=1" in " ".join(_with_interactive("true"))
    for start in (only(cluster, "ray start --head"), only(cluster, "ray start --address")):
        assert "unset OMP_NUM_THREADS;" in start


def test_mlflow_is_supervised_durable_and_quiet(cluster):
    unit = only(cluster, "[Service]", "head_setup")
    lines = [line.strip() for line in unit.splitlines()]
    assert {"Restart=always", "StartLimitIntervalSec=0", "RequiresMountsFor=/mnt/raybust"} <= {
        *lines
    }
    assert "Environment=MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in lines
    assert "Environment=MLFLOW_DISABLE_TELEMETRY=true" in lines
    assert "--backend-store-uri sqlite:////mnt/raybust/" in unit
    assert "--artifacts-destination /mnt/raybust/" in unit
    assert "mount /mnt/raybust" in only(cluster, "/etc/fstab", "setup")


def test_every_blank_to_fill_in_is_marked_and_stops_the_launch():
    # Zeros are valid in form and exist nowhere: AWS refuses them, nothing half-right starts.
    blanks = [line for line in TEXT.splitlines() if re.search(r"(ami|sg|fs)-0+\b", line)]
    assert len(blanks) == 3
    assert all("# FILL IN" in line for line in blanks)


@pytest.mark.parametrize("kind", COMMANDS)
def test_commands_are_bash_as_ray_wraps_them(cluster, kind):
    for command in commands(cluster, kind):
        assert_bash(command)


# --- what is copied -------------------------------------------------------------------------------


def test_file_mounts(cluster):
    mounts = cluster["file_mounts"]
    readme = PYPROJECT["project"]["readme"]
    for remote, local in mounts.items():
        assert remote.startswith("~/")
        assert not Path(local).is_absolute()
        assert ".." not in Path(local).parts
        if not local.startswith("~/"):
            assert remote == f"~/raybust/{local}"
            assert (ROOT / local).exists() or local == readme
    assert [local for local in mounts.values() if local.startswith("~/")] == ["~/.ray/auth_token"]
    # Whole folders of the user's would bring secrets and gigabytes along.
    assert not {".", "./", "runs", "data", ".git", ".venv"} & set(mounts.values())


def test_everything_that_the_build_reads_is_mounted(cluster):
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", "requirements.lock", PYPROJECT["project"]["readme"]}
    needed |= {*PYPROJECT["project"]["license-files"], *wheel["packages"], *wheel["force-include"]}
    assert needed <= set(cluster["file_mounts"].values())


def test_rsync_excludes_rubbish_and_nothing_of_the_package(cluster):
    patterns = cluster["rsync_exclude"]
    assert {".git", ".venv", "__pycache__"} <= set(patterns)

    def excluded(path):
        return any(fnmatch.fnmatch(part, pattern) for part in path.parts for pattern in patterns)

    assert excluded(Path("raybust/__pycache__/cli.cpython-311.pyc"))
    sources = [*(ROOT / "raybust").rglob("*.py"), *(ROOT / "search_spaces").rglob("*.yaml")]
    assert not [path for path in sources if excluded(path.relative_to(ROOT))]
    # A module that outgrows its budget becomes a package of the same name.
    assert not excluded(Path("raybust/data/loaders.py"))
