"""The operators of the lowered graph: one operator, one class, one file.

ONNX has many names for few maps: Transpose, Slice, Gather, Split, Expand and Resize all pick
entries of a vector, and every pooling by the mean is a convolution. So the operators here are the
maps, on flat vectors of fixed length, and `onnxcert.frontend.rules` says which of them each ONNX
operator becomes. Two families own all the rules that the analyses need:

* `Affine`: y = A x + b (apply, transpose, absolute); interval bounds, linear bounds, attack
  gradients and error bounds follow from these three.
* `Elementwise`: y_i = f(x_i) (value, derivative, relax).

What is neither is rewritten into both when the model is read: max(a, b) = b + relu(a - b).
"""

from onnxcert.ops.absolute import Absolute
from onnxcert.ops.adjoint import Adjoint
from onnxcert.ops.base import OPERATORS, Affine, Elementwise, Operator
from onnxcert.ops.concat import Concat
from onnxcert.ops.convolution import Convolution
from onnxcert.ops.leaky_relu import LeakyRelu
from onnxcert.ops.linear import Linear
from onnxcert.ops.maximum import Maximum
from onnxcert.ops.relu import Relu
from onnxcert.ops.scale import Scale
from onnxcert.ops.select import Select
from onnxcert.ops.sigmoid import Sigmoid
from onnxcert.ops.sign import Sign
from onnxcert.ops.sparse import SparseLinear
from onnxcert.ops.sum import Sum
from onnxcert.ops.tanh import Tanh

__all__ = [
    "OPERATORS",
    "Absolute",
    "Adjoint",
    "Affine",
    "Concat",
    "Convolution",
    "Elementwise",
    "LeakyRelu",
    "Linear",
    "Maximum",
    "Operator",
    "Relu",
    "Scale",
    "Select",
    "Sigmoid",
    "Sign",
    "SparseLinear",
    "Sum",
    "Tanh",
]
