"""cluster.yaml through Ray's own AWS bootstrap, against a moto server in place of AWS.

The rules of the security groups are read back from the server: those that the file's comments make,
and those that Ray writes where a node type names no group.
"""

import re
import shlex
import urllib.request
from pathlib import Path

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from ray.autoscaler._private.aws import utils
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.util import prepare_config, validate_config

from raybust.cluster.autoscaler import largest

TEXT = (Path(__file__).resolve().parents[1] / "cluster.yaml").read_text()
OPEN = ("0.0.0.0/0", "::/0")


@pytest.fixture
def ec2(tmp_path, monkeypatch):
    """A client of a new AWS account, in which there is Ray's role: Ray waits 15 s where it makes
    it."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    (tmp_path / ".ssh").mkdir()
    for key, value in {
        "HOME": str(tmp_path),
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": yaml.safe_load(TEXT)["provider"]["region"],
    }.items():
        monkeypatch.setenv(key, value)
    utils.resource_cache.cache_clear()
    utils.client_cache.cache_clear()
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
    iam, name = boto3.client("iam"), "ray-autoscaler-v1"
    iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=name)
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    yield boto3.client("ec2")
    server.stop()


def filled_in(ec2):
    """The file with a group as its comments make it, and an image of the account."""
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    made = ec2.create_security_group(GroupName="raybust", Description="x", VpcId=vpc)
    group, plain = made["GroupId"], re.sub(r"\\\n#\s*", "", TEXT)
    (address,) = re.findall(r"MY_CIDR=(\S+)", TEXT)
    for rule in re.findall(r"authorize-security-group-ingress (.*)", plain):
        words = shlex.split(rule.replace("$GROUP", group).replace("$MY_CIDR", address))
        given = dict(zip(words[::2], words[1::2], strict=True))
        permission = {"IpProtocol": given["--protocol"].replace("all", "-1")}
        if "--port" in given:
            permission |= dict.fromkeys(("FromPort", "ToPort"), int(given["--port"]))
        if "--cidr" in given:
            permission["IpRanges"] = [{"CidrIp": given["--cidr"]}]
        else:
            permission["UserIdGroupPairs"] = [{"GroupId": given["--source-group"]}]
        ec2.authorize_security_group_ingress(
            GroupId=given["--group-id"], IpPermissions=[permission]
        )
    image = ec2.describe_images()["Images"][0]["ImageId"]
    text = re.sub(r"\bsg-0+\b", group, re.sub(r"\bami-0+\b", image, TEXT))
    return yaml.safe_load(text), group, address


def sources(ec2):
    """(group's name, protocol, port) to the addresses that it admits, over all groups."""
    return {
        (group["GroupName"], rule["IpProtocol"], rule.get("FromPort")): [
            *(given["CidrIp"] for given in rule["IpRanges"]),
            *(given["CidrIpv6"] for given in rule.get("Ipv6Ranges", ())),
        ]
        for group in ec2.describe_security_groups()["SecurityGroups"]
        for rule in group["IpPermissions"]
    }


def bootstrapped(cluster):
    prepared = prepare_config(cluster)
    validate_config(prepared)
    return bootstrap_aws(prepared)


def test_nothing_is_open_to_the_world_after_the_bootstrap(ec2):
    cluster, group, address = filled_in(ec2)
    ready = bootstrapped(cluster)
    found = {key: value for key, value in sources(ec2).items() if key[0] != "default"}
    assert found == {("raybust", "tcp", 22): [address], ("raybust", "-1", None): []}
    assert not {place for places in sources(ec2).values() for place in places} & set(OPEN)
    for kind in ready["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"] == [group]
        assert kind["node_config"]["SubnetIds"]
        assert kind["node_config"]["KeyName"]


def test_what_may_come_is_told_by_the_file_that_ray_makes_of_it(ec2):
    nodes = largest(bootstrapped(filled_in(ec2)[0]))
    assert [(node["CPU"], node["GPU"]) for node in nodes] == [(8, 1)] * 8


def test_a_node_type_without_its_group_would_be_open(ec2):
    # Why the file names a group for every node type: provider.security_group does not help.
    cluster, _, address = filled_in(ec2)
    del cluster["available_node_types"]["gpu_l4"]["node_config"]["SecurityGroupIds"]
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": address}]}
    cluster["provider"]["security_group"] = {"GroupName": "own", "IpPermissions": [rule]}
    bootstrapped(cluster)
    assert OPEN[0] in sources(ec2)["own", "tcp", 22]
