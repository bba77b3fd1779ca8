#!/usr/bin/env bash
# Install onnxcert for VNN-COMP, once per machine: install_tool.sh v1
#
# Everything goes into .venv beside this repository. With an NVIDIA driver the GPU extra that fits
# its CUDA version is installed too; without one the CPU is used.
set -euo pipefail

[[ "${1:-}" == v1 ]] || { echo "usage: install_tool.sh v1" >&2; exit 1; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}

extra="[lp]"
if command -v nvidia-smi >/dev/null && driver=$(nvidia-smi 2>/dev/null); then
  case $driver in
    *"CUDA Version: 12."*) extra="[lp,cuda12]" ;;
    *"CUDA Version: "*) extra="[lp,cuda13]" ;;
  esac
fi

"$python" -m venv "$root/.venv"
"$root/.venv/bin/python" -m pip install --quiet "$root$extra"
"$root/.venv/bin/onnxcert" --version
