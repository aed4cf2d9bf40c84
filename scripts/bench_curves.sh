#!/usr/bin/env bash
# Growth curves on a CPU: seconds a step against completions per prompt, completion length, image size and prompts per
# step, one JSON each, and their tables:
#
#   bash scripts/bench_curves.sh ours|both FOLDER [OPTION OF bench_vs_trl.py ...]
#   OMP_NUM_THREADS=2 PYTHON=.venv/bin/python bash scripts/bench_curves.sh both runs/curves --tuning lora
#
# Each curve varies one setting of: small, full fine-tuning, beta 0.04, G 8, 64 tokens, 384 pixels, 1 prompt a step.
# An OPTION that is one of these four breaks the curves. A file that is there is not measured again. What fails is named
# at the end; the other points are kept.
set -euo pipefail
if [ $# -lt 2 ] || { [ "$1" != ours ] && [ "$1" != both ]; }; then
    echo "usage: bash scripts/bench_curves.sh ours|both FOLDER [OPTION ...]" >&2
    exit 2
fi
systems=()
[ "$1" = both ] || systems=(--only ours)
mkdir -p "$2"
folder="$(cd "$2" && pwd)"
options=("${@:3}")
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export PYTHONPATH="$scripts/..${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-python3}"
failed=()

measure() { # OPTION VALUE
    local file="$folder/$1-$2.json"
    if [ -f "$file" ]; then return; fi
    echo "== --$1 $2"
    "$python" "$scripts/bench_vs_trl.py" --model small --tuning full --beta 0.04 --json "$file" \
        ${systems[@]+"${systems[@]}"} ${options[@]+"${options[@]}"} "--$1" "$2" || failed+=("--$1 $2")
}

# The point that all curves have in common is measured once.
measure generations 8
for point in new-tokens-64 image-size-384 prompts-1; do
    if [ -f "$folder/generations-8.json" ]; then cp "$folder/generations-8.json" "$folder/$point.json"; fi
done
for value in 4 16 32; do measure generations "$value"; done
for value in 16 256; do measure new-tokens "$value"; done
for value in 224 768; do measure image-size "$value"; done
for value in 2 4; do measure prompts "$value"; done

"$python" "$scripts/bench_table.py" "$folder"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
