#!/usr/bin/env bash
# Solve one instance: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT
#
# RESULTS_FILE gets sat (and the witness), unsat, unknown, timeout or error. The exit code is 0
# unless the call itself is wrong. CATEGORY is not looked at: there is no table of categories.
# Queries are answered over the reals, whatever their type: README.md says why.
set -uo pipefail

if [[ $# -ne 6 || $1 != v1 ]]; then
  echo "usage: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT" >&2
  exit 1
fi
model=$3 spec=$4 results=$5 timeout=$6

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${ONNXCERT_PYTHON:-$root/.venv/bin/python}

# The process is killed at the timeout, so it has to end a little earlier by itself.
limit=$(awk -v t="$timeout" 'BEGIN { m = 1 + 0.01 * t; print (t > 2 * m) ? t - m : t / 2 }')

# A query over several networks has [('f', 'path'), ('g', 'path')] in place of the model.
arguments=("$model" "$spec")
if [[ $model == \[* ]]; then
  arguments=(verify "$spec")
  while IFS= read -r pair; do
    arguments+=("--network=$pair")
  done < <("$python" -c '
import sys
from onnxcert.bench.instances import networks
for name, path in networks(sys.argv[1]):
    print(f"{name}={path}")
' "$model")
fi

output=$results.$$.part
trap 'kill -KILL "${child:-}" 2>/dev/null; rm -f -- "$output"' EXIT
trap 'exit 143' TERM INT

"$python" -m onnxcert "${arguments[@]}" --semantics real --quiet --timeout="$limit" >"$output" &
child=$!
wait "$child"
code=$?
child=""

if [[ $code -ne 0 ]]; then
  echo error >"$output"
else
  sed -i '1s/^timed-out$/timeout/' "$output"
fi
mv -f -- "$output" "$results"
exit 0
