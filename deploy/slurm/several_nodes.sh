#!/bin/bash
# A study on several whole nodes; docs/howto/slurm.md goes through it line by line.
#
#   GPM_TUNE_STORAGE=/shared/me/gpm-tune sbatch --nodes=4 deploy/slurm/several_nodes.sh my_study.yaml
#
# Whole ones, since `ray symmetric-run` begins on no node with another Ray, and ends all of yours that is on its nodes.
# CHANGE what you ask for; a site may want --account and --partition, too.
#SBATCH --job-name=gpm-tune
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# What must outlive the job goes to the storage, a folder that all nodes see. The home has databases of SQLite, which
# network file systems damage: it lies on the first node's own disk, and is copied to the storage every minute.
: "${GPM_TUNE_STORAGE:?name a folder that all nodes see, such as /shared/me/gpm-tune}"
scratch=$(mktemp -d "${SLURM_TMPDIR:-/tmp}/gpm-tune-XXXXXX") || exit
export GPM_TUNE_STORAGE scratch GPM_TUNE_HOME=$scratch/gpm-runs

# This script runs on the first node, which is Ray's head.
addresses=$(hostname -I)
export head=${addresses%% *}:$((20000 + SLURM_JOB_ID % 10000)) # where no other job's head listens
# Ray answers who has the token: this job.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))') || exit
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
export RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

on_each_node() {
  # Sockets must have short paths, and $SLURM_TMPDIR is often too long for them.
  RAY_TMPDIR=$(mktemp -d /tmp/ray-XXXXXX) || exit
  export RAY_TMPDIR
  ray symmetric-run --address "$head" --min-nodes "$SLURM_NNODES" \
    --num-cpus "$SLURM_CPUS_ON_NODE" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
    -- bash -c 'echo $$ > "$scratch/study.pid"; exec gpm-tune run "$@" --address "$head"' gpm-tune "$@"
  code=$?
  rm -rf "$RAY_TMPDIR"
  exit $code
}
export -f on_each_node

stop() { kill -INT "$(cat "$scratch/study.pid")"; }
# Before the time limit: trials write checkpoints, and the job waits in the queue again, whatever they do.
stop_and_requeue() {
  stop
  { sleep 240 && scontrol requeue "$SLURM_JOB_ID"; } &
  requeue=$!
}
requeue=
trap stop_and_requeue USR1
trap stop TERM # `scancel --batch --signal=TERM JOB`: no queue

set -m # or the shell would have the study ignore SIGINT
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" \
  bash -c 'on_each_node "$@"' gpm-tune "$@" &
nodes=$!
while kill -0 $nodes 2> /dev/null; do wait $nodes; done # a signal ends `wait`, not the study
wait $nodes
code=$?

rm -rf "$scratch"
[ -z "$requeue" ] || kill -- "-$requeue"
if [ -n "$requeue" ] && [ $code -eq 130 ]; then exec scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
