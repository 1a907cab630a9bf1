#!/bin/bash
# A study on one node, or a part of one; docs/howto/slurm.md goes through it line by line.
#
#   GPM_TUNE_STORAGE=/shared/me/gpm-tune sbatch deploy/slurm/one_node.sh my_study.yaml
#
# CHANGE what you ask for; a site may want --account and --partition, too.
#SBATCH --job-name=gpm-tune
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# What must outlive the job goes to the storage, a folder that all nodes see. The home has databases of SQLite, which
# network file systems damage: it lies on the node's own disk, and is copied to the storage every minute.
: "${GPM_TUNE_STORAGE:?name a folder that all nodes see, such as /shared/me/gpm-tune}"
# Sockets must have short paths, and $SLURM_TMPDIR is often too long for them.
RAY_TMPDIR=$(mktemp -d /tmp/ray-XXXXXX) || exit
export GPM_TUNE_STORAGE RAY_TMPDIR GPM_TUNE_HOME=${SLURM_TMPDIR:-$RAY_TMPDIR}/gpm-runs
# Of all that the machine has, Ray may use what Slurm gave to this job.
export RAY_OVERRIDE_RESOURCES="{\"CPU\": $SLURM_CPUS_ON_NODE, \"GPU\": ${SLURM_GPUS_ON_NODE:-0}}"

stop() { kill -INT $study; }
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
gpm-tune run "$@" &
study=$!
while kill -0 $study 2> /dev/null; do wait $study; done # a signal ends `wait`, not the study
wait $study
code=$?

rm -rf "$RAY_TMPDIR" "$GPM_TUNE_HOME"
[ -z "$requeue" ] || kill -- "-$requeue"
if [ -n "$requeue" ] && [ $code -eq 130 ]; then exec scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
