#!/usr/bin/env bash
# Trains one adapter per imaging modality, tests each of them and the base model on all modalities, and draws who learned
# what from whom:
#
#   bash scripts/cross_modality.sh [OUT]                                the demo; OUT is runs/cross_modality by default
#   bash scripts/cross_modality.sh OUT [--each FOLDER] OPTIONS          any other data, e.g. Med-R1's:
#   bash scripts/cross_modality.sh runs/med_r1_cross --each configs/med_r1 \
#       --config configs/med_r1/think.yaml --config configs/lora.yaml
#
# OPTIONS go to every `medgrpo fit` and `medgrpo test`. The records of one modality are those that data.modalities keeps of
# data.train; with --each they are those of FOLDER/MODALITY.yaml, and FOLDER/all.yaml names the test files of all. In the
# environment, MODALITIES names some of ct mri xray ultrasound fundus dermoscopy microscopy oct, and SEED is a number.
#
# Started again, it goes on where it stopped: in the middle of a training, too, and of a test. OUT/report/index.html has the
# heatmaps and everything else.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:-runs/cross_modality}"
[ $# -eq 0 ] || shift
each=""
if [ "${1:-}" = --each ]; then
    each="${2:?--each needs a folder}"
    shift 2
fi
read -r -a modalities <<< "${MODALITIES:-ct mri xray ultrasound fundus dermoscopy microscopy oct}"
seed="${SEED:-0}"
bash scripts/env.sh

if [ $# -gt 0 ]; then
    options=("$@")
else
    if [ ! -f "$out/data/done" ]; then
        echo "== drawing questions and images"
        .venv/bin/python scripts/make_demo_data.py "$out/data" --seed "$seed" --train 4096 --test 800
        touch "$out/data/done"
    fi
    options=(--config configs/demo.yaml --config configs/cross_modality.yaml --data.train "$out/data/train.jsonl"
        --data.test "$out/data/test.jsonl" --data.image_root "$out/data")
fi
options+=(--seed_everything "$seed" --model.seed "$seed" --data.seed "$seed")

train() { # MODALITY
    local folder="$out/train/$1" resume=() records=(--data.modalities "[$1]")
    [ ! -f "$folder/done" ] || return 0
    [ -z "$each" ] || records=(--config "$each/$1.yaml")
    [ ! -e "$folder/checkpoints/last.ckpt" ] || resume=(--ckpt_path "$folder/checkpoints/last.ckpt")
    echo "== training on $1"
    .venv/bin/medgrpo fit "${options[@]}" "${records[@]}" "${resume[@]}" --checkpoint.dirpath "$folder/checkpoints" \
        --checkpoint.save_last link --trainer.logger.save_dir "$folder" --trainer.logger.name log
    touch "$folder/done"
}

test_all() { # NAME [OPTIONS]: leaves metrics.json when it is done
    local folder="$out/test/$1" records=()
    [ ! -f "$folder/metrics.json" ] || return 0
    [ -z "$each" ] || records=(--config "$each/all.yaml")
    echo "== testing $1"
    .venv/bin/medgrpo test "${options[@]}" "${records[@]}" "${@:2}" --predictions.dirpath "$folder" \
        --trainer.logger false
}

test_all base
for modality in "${modalities[@]}"; do
    train "$modality"
    last="$out/train/$modality/checkpoints/last" option=model_name_or_path
    [ ! -f "$last/adapter_config.json" ] || option=adapter
    test_all "$modality" "--model.policy.$option" "$last"
done
.venv/bin/medgrpo report "$out" --out "$out/report"
