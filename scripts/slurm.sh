#!/usr/bin/env bash
# A whole experiment on a SLURM cluster: select principles, train every arm and seed as jobs side by side, then judge.
#
#   PROFILE=paper SHARDS=15 SBATCH_ACCOUNT=mine SBATCH_PARTITION=gpu scripts/slurm.sh
#
# Run on a login node, from the repository's folder, on a file system that all nodes share. Everything is said by
# environment variables:
#   PROFILE   a profile's name or path (default: gpu)
#   SHARDS    jobs of the array; run i of arms x seeds goes to shard i modulo SHARDS (default: 4)
#   GPUS      GPUs of a job (default: 1); with more, each run is trained under `accelerate launch` over all of them
#   RESULTS   the folder for results (default: results)
#   PYTHON    the Python that has the package (default: .venv/bin/python)
# sbatch reads its own options from SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_TIMELIMIT, SBATCH_MEM_PER_NODE ... .
# A shard that was cut off goes on from its last checkpoint: give the same command again.
set -euo pipefail

PROFILE=${PROFILE:-gpu} SHARDS=${SHARDS:-4} GPUS=${GPUS:-1} RESULTS=${RESULTS:-results} PYTHON=${PYTHON:-.venv/bin/python}
export PROFILE SHARDS GPUS RESULTS PYTHON

enigma() { "$PYTHON" -m enigma "$@" --results "$RESULTS"; }

submit() { sbatch --parsable --export=ALL,STEP="$1" --gpus="$GPUS" --job-name="enigma-$1" "${@:2}" "$0"; }

case ${STEP:-submit} in
submit)
  "$PYTHON" -m enigma check "$PROFILE" >&2
  first=$(submit select)
  every=$(submit train --array="1-$SHARDS" --dependency="afterok:${first%%;*}")
  submit judge --dependency="afterany:${every%%;*}"
  ;;
select)
  enigma run "$PROFILE" --to 01_select
  ;;
train)
  launch=()
  if ((GPUS > 1)); then launch=(--launch "accelerate launch --num_processes $GPUS"); fi
  enigma train "$PROFILE" --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" "${launch[@]}"
  ;;
judge)
  # Trains nothing: where a shard failed, its runs are named and no figure is drawn.
  enigma run "$PROFILE" --from 02_train --jobs 0
  ;;
*)
  echo "STEP: found $STEP; expected select, train or judge; leave it to this script" >&2
  exit 2
  ;;
esac
