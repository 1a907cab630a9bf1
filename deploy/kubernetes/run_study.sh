#!/bin/bash
# The entrypoint of rayjob.yaml: `gpm-tune run` with these arguments, on the cluster that it is in.
#
# KubeRay runs a Ray job that FAILED again, on a new cluster, and that is every exit code but 0: right for a lost head (3),
# or a driver that was killed, and a waste of GPUs after bad input. KubeRay leaves alone what is STOPPED or SUCCEEDED. So
# where another run would end as this one did, the job stops itself.
gpm-tune run "$@" --address auto
code=$?
case $code in
  1) reason="no trial has a result" ;;
  2) reason="bad input, see above" ;;
  70) reason="a bug, see above" ;;
  126 | 127) reason="gpm-tune cannot be started" ;;
  130 | 143) reason="the study was stopped" ;;
  *) exit $code ;;
esac
echo "gpm-tune ended with exit code $code ($reason): this job stops itself, so that KubeRay does not run it again"
job=$(python -c "import json, os; print(json.loads(os.environ['RAY_JOB_CONFIG_JSON_ENV_VAR'])['metadata']['job_submission_id'])")
ray job stop "$job" # ends this script, too
echo "the job could not be stopped, and counts as done"
