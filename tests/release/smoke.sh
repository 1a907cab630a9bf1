# What an installed gpm-tune must be able to do, in an empty folder, with nothing of the repository at hand.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

gpm-tune --version
gpm-tune schema >schema.json
gpm-tune init first.yaml --model gan --data gaussians
gpm-tune run first.yaml --trials 1 --set experiment.training.steps=20 --set experiment.evaluation.every=10
gpm-tune sample first -o samples.png
gpm-tune report first
test -s samples.png && test -s first.html
gpm-tune run discr_flow_gaussians.yaml --dry-run --quiet >plan.txt
python -c 'from gpm_tune import Study; print(Study.open("first"), Study.open("first").best().sample(3).shape)'
