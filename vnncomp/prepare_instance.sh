#!/usr/bin/env bash
# Before each instance: prepare_instance.sh v1 CATEGORY ONNX VNNLIB
#
# Nothing is computed. The files are read once, so that the measured run does not wait for the disk.
# A failure here would skip the whole category, so there is none short of a wrong call.
set -euo pipefail

if [[ $# -ne 4 || $1 != v1 ]]; then
  echo "usage: prepare_instance.sh v1 CATEGORY ONNX VNNLIB" >&2
  exit 1
fi

# A query over several networks has [('f', 'path'), ('g', 'path')] in place of the model.
mapfile -t models < <(grep -oE "[^'\"]+\.onnx(\.gz)?" <<<"$3")
for file in "${models[@]}" "$4"; do
  [[ -r $file ]] && cat -- "$file" >/dev/null
done
exit 0
