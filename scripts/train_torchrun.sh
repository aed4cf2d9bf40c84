#!/usr/bin/env bash
# Trains with torchrun on one or several nodes; OPTIONS are those of `medgrpo fit`:
#
#   bash scripts/train_torchrun.sh OPTIONS
#   bash scripts/train_torchrun.sh --config configs/medvlm_r1/grpo.yaml --config configs/lora.yaml
#
# Run the same command on every node, within a few minutes. Started again, it goes on from the last checkpoint. SIGTERM to
# it ends it with a checkpoint. Edit these lines:
nodes=1
processes=8                # per node, one for each GPU
head=localhost:29500       # one of the nodes, and a port of it that is free
run=train                  # everything is written to runs/$run, which all nodes must share
seconds_to_stop=600        # more than the longest step takes

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -eq 0 ]; then
    echo "usage: bash scripts/train_torchrun.sh OPTIONS (of medgrpo fit, such as --config FILE)" >&2
    exit 2
fi
bash scripts/env.sh
exec .venv/bin/python -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$processes" --rdzv-backend c10d \
    --rdzv-endpoint "$head" --rdzv-id "$run" --shutdown-timeout "$seconds_to_stop" -m medgrpo.cli fit "$@" \
    --trainer.num_nodes "$nodes" --trainer.devices "$processes" \
    --trainer.logger.save_dir runs --trainer.logger.name "$run" --trainer.logger.version 0 \
    --checkpoint.dirpath "runs/$run/version_0/checkpoints" --ckpt_path last
