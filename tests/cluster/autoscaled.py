"""A cluster on this machine with nodes started by Ray's autoscaler (fake multi-node provider).

Ray's `AutoscalingCluster` runs `ray stop`, which stops every Ray on the machine, and needs a file
that the wheel lacks.
"""

import contextlib
import json
import socket

import psutil
from ray._private import services
from ray.cluster_utils import Cluster

HEAD = "f" * 51 + "00000"
"""Node id that the provider expects of the head."""

PROVIDER = {
    "type": "external",
    "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    "head_node_id": HEAD,
    "launch_multiple": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
    "foreground_node_launch": True,
}
LISTS = ("initialization_commands", "setup_commands", "head_setup_commands", "rsync_exclude",
         "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
         "rsync_filter", "cluster_synced_files")  # fmt: skip


class Autoscaled:
    """A head, and up to `most` nodes started on demand.

    Args:
        folder: where the cluster file is written.
        head: CPUs of the head.
        node: CPUs of each node.
        most: nodes at a time.
        v2: which of Ray's two autoscalers; `ray up` defaults to v2.
        patch: pytest's, for Ray's settings.
    """

    def __init__(self, folder, patch, *, head, node, most, v2):
        patch.setenv("RAY_FAKE_CLUSTER", "1")
        patch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
        if v2:
            patch.setenv("RAY_enable_autoscaler_v2", "1")
            patch.setenv("RAY_CLOUD_INSTANCE_ID", HEAD)
            patch.setenv("RAY_OVERRIDE_NODE_ID_FOR_TESTING", HEAD)
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        types = {
            "ray.head.default": {"resources": {"CPU": head}, "node_config": {}, "max_workers": 0},
            "node": {"resources": {"CPU": node}, "node_config": {}, "max_workers": most + 1},
        }
        address = f"{services.get_node_ip_address()}:{port}"
        file = folder / "cluster.yaml"
        file.write_text(
            json.dumps(
                {
                    "cluster_name": "fake",
                    "max_workers": most,
                    "idle_timeout_minutes": 5,
                    "upscaling_speed": 1.0,
                    "provider": {**PROVIDER, "gcs_address": address},
                    "head_node_type": "ray.head.default",
                    "available_node_types": types,
                    **{key: {} for key in ("auth", "docker", "file_mounts")},
                    **{key: [] for key in LISTS},
                    "file_mounts_sync_continuously": False,
                }
            )
        )
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": head, "gcs_server_port": port,
                            "autoscaling_config": str(file)},
        )  # fmt: skip
        self.address = self.cluster.address

    def end(self):
        """Stops the head and the nodes, which are children of its autoscaler."""
        autoscaler = self.cluster.head_node.all_processes["monitor"][0].process
        nodes = psutil.Process(autoscaler.pid).children(recursive=True)
        self.cluster.shutdown()
        for process in nodes:
            with contextlib.suppress(psutil.Error):
                process.kill()
