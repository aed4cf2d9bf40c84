#!/usr/bin/env bash
# Everything that needs a GPU, without a network; each of the two in under 9 minutes:
#
#   bash scripts/bench_gpu.sh WHEELS FOLDER            tests and speed
#   bash scripts/bench_gpu.sh WHEELS FOLDER memory     tests, memory of Q-LoRA, growth over 200 steps, FSDP with one process
#
# WHEELS is a folder of wheels of what Python on this machine lacks; torch and transformers must be there. They go into a
# virtual environment in a temporary folder. FOLDER receives a JSON and a log per item. Each item has a time limit of its
# own (seconds, below): one that fails or is too slow is named at the end, and the others are kept.
#
# Without a GPU, to try the script itself:  MODEL=tiny DEVICE=cpu bash scripts/bench_gpu.sh WHEELS FOLDER
set -uo pipefail
if [ $# -lt 2 ] || [ $# -gt 3 ] || [ ! -d "$1" ] || [[ "${3:-speed}" != @(speed|memory) ]]; then
    echo "usage: bash scripts/bench_gpu.sh WHEELS FOLDER [speed|memory] (WHEELS: a folder of wheels)" >&2
    exit 2
fi
wheels="$(cd "$1" && pwd)"
mkdir -p "$2" || exit 2
folder="$(cd "$2" && pwd)"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
model="${MODEL:-3b}"
large="${MODEL:-7b}"
device="${DEVICE:-cuda}"
base="${PYTHON:-python3}"
tokens=128
prompts=8
generations=8
if [ "$device" = cpu ]; then # a trial: seconds, not figures
    tokens=8
    prompts=1
    generations=2
fi
failed=()

item() { # NAME LIMIT COMMAND...: run it, log it, go on whatever happens
    local name="$1" limit="$2" start=$SECONDS
    shift 2
    echo "== $name (at most $limit s)"
    if timeout --kill-after=10 "$limit" "$@" >"$folder/$name.log" 2>&1; then
        echo "   $((SECONDS - start)) s"
    else
        failed+=("$name")
        echo "   failed after $((SECONDS - start)) s; the end of $folder/$name.log:"
        tail -n 15 "$folder/$name.log"
    fi
}

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export TMPDIR="$scratch" PIP_NO_INDEX=1 PIP_FIND_LINKS="$wheels" PIP_DISABLE_PIP_VERSION_CHECK=1
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME="$scratch/hf" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

install() {
    # A base Python that is itself a virtual environment is not seen through --system-site-packages: name its folder.
    "$base" -m venv --system-site-packages --without-pip "$scratch/venv" || return
    local site
    site="$("$scratch/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || return
    "$base" -c 'import sysconfig; print(*{sysconfig.get_path(p) for p in ("purelib", "platlib")}, sep="\n")' \
        >"$site/base.pth" || return
    "$base" -m pip --python "$scratch/venv/bin/python" install --quiet \
        lightning 'jsonargparse[signatures]' torchmetrics peft bitsandbytes qwen-vl-utils accelerate pillow numpy \
        trl==1.16.0 datasets \
        pytest hypothesis || return
    "$scratch/venv/bin/python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers",
        transformers.__version__, "GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none")'
}
export -f install
export base scratch
item install 70 bash -c install
grep -h GPU "$folder/install.log"
python="$scratch/venv/bin/python"

item tests 120 "$python" -m pytest -q -p no:cacheprovider -m cuda tests
if [ "${3:-speed}" = memory ]; then
    small="${MODEL:-small}"
    train=("$python" scripts/bench_memory.py --device "$device" --generations "$generations" --new-tokens "$tokens")
    item qlora 180 "${train[@]}" --model "$large" --tuning lora --quantize nf4 --gradient-checkpointing --steps 3
    item growth 90 "${train[@]}" --model "$small" --tuning lora --steps 200
    for strategy in fsdp2 fsdp1; do
        item "$strategy" 60 "${train[@]}" --model "$small" --strategy "$strategy" --steps 5
    done
    tail -n 1 "$folder"/{qlora,growth,fsdp2,fsdp1}.log
    echo "all in $SECONDS s; failed: ${failed[*]:-none}"
    exit $((${#failed[@]} > 0))
fi
# Saved once for two items; the largest makes its own.
item model 45 env PYTHONPATH="$PYTHONPATH:scripts" "$python" -c \
    'import pathlib, sys; from bench_common import make_model; make_model(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3])' \
    "$model" "$scratch/$model" "$device"
# One group a micro-batch: all 64 rows at once would not fit in TRL's memory.
shape=(--device "$device" --tuning lora --prompts "$prompts" --generations "$generations" --new-tokens "$tokens")
step=("${shape[@]}" --beta 0.04 --micro-batches "$prompts")
item decode 85 "$python" scripts/bench_decode.py --model "$scratch/$model" "${shape[@]}" --json "$folder/decode.json"
item step-both 155 "$python" scripts/bench_vs_trl.py --model "$scratch/$model" "${step[@]}" --json "$folder/step-both.json"
item step-large 95 "$python" scripts/bench_vs_trl.py --model "$large" "${step[@]}" --only ours --json "$folder/step-large.json"

for name in decode step-both step-large; do
    if [ -f "$folder/$name.json" ]; then
        printf '\n== %s\n' "$name"
        grep -vE '%\||Warning|warn' "$folder/$name.log" | tail -n 12
    fi
done
echo "all in $SECONDS s"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
