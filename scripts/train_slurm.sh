#!/usr/bin/env bash
# Trains under SLURM on one or several nodes; OPTIONS are those of `medgrpo fit`:
#
#   sbatch scripts/train_slurm.sh OPTIONS
#   sbatch scripts/train_slurm.sh --config configs/medvlm_r1/grpo.yaml --config configs/lora.yaml
#
# Submit it from the folder of this repository. When its time is nearly up it saves, stops and queues itself again; when it
# is pre-empted, SLURM does that. Each start goes on from the last checkpoint. Edit these lines:
#SBATCH --job-name=medgrpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
run=train                  # everything is written to runs/$run, which all nodes must share

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
if [ $# -eq 0 ]; then
    echo "usage: sbatch scripts/train_slurm.sh OPTIONS (of medgrpo fit, such as --config FILE)" >&2
    exit 2
fi
bash scripts/env.sh

# --signal=B: tells this shell 600 seconds before the end, more than a step may take; scancel passes it on to the tasks.
stopped=""
trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
srun .venv/bin/python -m medgrpo.cli fit "$@" --trainer.num_nodes "$SLURM_NNODES" \
    --trainer.devices "$SLURM_NTASKS_PER_NODE" \
    --trainer.logger.save_dir runs --trainer.logger.name "$run" --trainer.logger.version 0 \
    --checkpoint.dirpath "runs/$run/version_0/checkpoints" --ckpt_path last &
status=0
wait $! || status=$?
if [ -n "$stopped" ]; then # that wait ended with the signal, not with srun
    wait $! || true
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
