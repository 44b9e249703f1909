#!/bin/bash
# raybust under Slurm: one sweep on the nodes of one allocation. Run `sbatch examples/slurm.sh` from
# the root of the repository on a file system shared by all nodes. Resubmit it after a time limit or
# a lost node, and the sweep resumes, because its name and --out are the same.
#
# Needed once: `make venv` in this folder, and the cluster's password ("token"):
#   .venv/bin/ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token
#
#SBATCH --job-name=raybust
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --exclusive=user
#SBATCH --time=12:00:00
#SBATCH --output=raybust-%j.log
set -euo pipefail

SPACE=${1:-search_spaces/quickstart.yaml}
OUT=${OUT:-$PWD/runs}  # shared by all nodes

export PATH="$PWD/.venv/bin:$PATH" RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Two users on one node must not use the same port.
PORT=$((20000 + SLURM_JOB_ID % 20000))
# Gloo and NCCL would pick an interface by host name, which may be loopback. Assumes that the
# interface has the same name on all nodes.
ADDRESS=$(srun --nodes=1 --ntasks=1 --nodelist="$HEAD" hostname --ip-address | awk '{print $1}')
GLOO_SOCKET_IFNAME=$(ip -4 route get "$ADDRESS" | sed -n 's/.* dev \([^ ]*\).*/\1/p')
if [ "$GLOO_SOCKET_IFNAME" = lo ]; then  # on the head: find the interface with the address
  GLOO_SOCKET_IFNAME=$(ip -4 -o addr show | awk -v a="$ADDRESS" '$4 ~ "^"a"/" {print $2; exit}')
fi
export GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME="$GLOO_SOCKET_IFNAME"

# Starts Ray on every node, runs the command on the first one, stops Ray again. No MLflow server:
# the store is $OUT/mlflow.db, or MLFLOW_TRACKING_URI if set.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
  ray symmetric-run --address "$ADDRESS:$PORT" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
  -- raybust tune "$SPACE" --name "${SLURM_JOB_NAME:-raybust}" --out "$OUT" --address auto
