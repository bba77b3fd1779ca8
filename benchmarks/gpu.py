"""Everything that needs a GPU, in one call: tests, then optimised bounds beside auto_LiRPA.

::

    python benchmarks/gpu.py INSTANCES [--peer-python PYTHON] [--out DIR]

INSTANCES is the folder of the competition set (``mnist_fc_2022``, ``oval21_2022`` and
``cifar10_resnet_2021`` are used). PYTHON has torch with CUDA and auto_LiRPA installed; without it
only our bounds are measured. The name of the card is printed first; the exit code is that of the
tests, or of the comparison.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from onnxcert.arrays import select_device
from onnxcert.errors import UsageError

NETWORKS = {
    "mnist_fc_2022/onnx/mnist-net_256x2.onnx.gz": "mnist_fc_2022/vnnlib/prop_12_0.05.vnnlib.gz",
    "mnist_fc_2022/onnx/mnist-net_256x6.onnx.gz": "mnist_fc_2022/vnnlib/prop_7_0.03.vnnlib.gz",
    "oval21_2022/onnx/cifar_base_kw.onnx.gz": (
        "oval21_2022/vnnlib/cifar_base_kw-img8194-eps0.018300653594771243.vnnlib.gz"
    ),
    "oval21_2022/onnx/cifar_wide_kw.onnx.gz": (
        "oval21_2022/vnnlib/cifar_wide_kw-img9062-eps0.0014379084967320263.vnnlib.gz"
    ),
    "cifar10_resnet_2021/onnx/resnet_2b.onnx.gz": (
        "cifar10_resnet_2021/vnnlib/resnet2b_pgd_filtered__prop_15_eps_0.008.vnnlib.gz"
    ),
    "cifar10_resnet_2021/onnx/resnet_4b.onnx.gz": (
        "cifar10_resnet_2021/vnnlib/resnet4b_pgd_filtered__prop_2_eps_0.004.vnnlib.gz"
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("instances", type=Path)
    parser.add_argument("--peer-python", type=Path, metavar="PYTHON")
    parser.add_argument("--out", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    try:
        device = select_device("cuda")
    except UsageError as error:
        parser.exit(2, f"{error}\n")
    properties = device.xp.cuda.runtime.getDeviceProperties(device.index)
    print(properties["name"].decode(), flush=True)
    if code := subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu"], check=False
    ).returncode:
        return code
    script = Path(__file__).with_name("optimised.py")
    command = [sys.executable, str(script), "--device", "cuda", "--batch", "1,128,1024"]
    for name in ("peer_python", "out"):
        if value := getattr(arguments, name):
            command += [f"--{name.replace('_', '-')}", str(value)]
    folder = arguments.instances
    command += [f"{folder / model}={folder / spec}" for model, spec in NETWORKS.items()]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
