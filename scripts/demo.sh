#!/usr/bin/env bash
# Trains the built-in tiny Qwen2.5-VL on synthetic images with GRPO, and tests it before and after:
#
#   bash scripts/demo.sh [SEED]      0 by default
#
# Everything it writes is under runs/: tensorboard --logdir runs shows the curves and samples.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seed="${1:-0}"
bash scripts/env.sh

run="runs/demo-seed$seed-$(date +%Y%m%d-%H%M%S)"
medgrpo() {
    .venv/bin/medgrpo "$1" --config configs/demo.yaml --seed_everything "$seed" --model.seed "$seed" \
        --data.seed "$seed" --data.train "$run/data/train.jsonl" --data.test "$run/data/test.jsonl" \
        --data.image_root "$run/data" "${@:2}"
}
measure() { # NAME [MODEL FOLDER]: test, and leave answers and figures in $run/NAME
    medgrpo test --trainer.logger false --predictions.dirpath "$run/$1" \
        ${2:+--model.policy.model_name_or_path "$2"}
}

echo "== drawing questions and images"
.venv/bin/python scripts/make_demo_data.py "$run/data" --seed "$seed"
echo "== testing the base model"
measure before
echo "== training"
medgrpo fit --trainer.logger.save_dir "$run" --checkpoint.dirpath "$run/checkpoints" --checkpoint.filename trained \
    --checkpoint.save_last false
echo "== testing the trained model"
measure after "$run/checkpoints/trained"

echo "== comparing them"
.venv/bin/medgrpo compare "$run/before" "$run/after"
.venv/bin/medgrpo report "$run" --out "$run/report"

.venv/bin/python - "$run" "$seed" <<'END'
import json, sys

run, seed = sys.argv[1:]
before, after = (json.load(open(f"{run}/{name}/metrics.json"))["overall"] for name in ("before", "after"))
print(f"with a grey image: {before['blank']:.3f} -> {after['blank']:.3f}")
print(f"held-out accuracy: {before['accuracy']:.3f} -> {after['accuracy']:.3f} (n={after['n']}, seed={seed})")
END
