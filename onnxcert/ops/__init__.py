"""The operators of the lowered graph: one operator, one class, one file.

ONNX has many names for few maps: Transpose, Slice, Gather, Split, Expand and Resize all pick
entries of a vector, and every pooling by the mean is a convolution. So the operators here are the
maps, on flat vectors of fixed length, and `onnxcert.frontend.rules` says which of them each ONNX
operator becomes. Two families own nearly all the rules that the analyses need:

* `Affine`: y = A x + b (apply, transpose, absolute); interval bounds, linear bounds, attack
  gradients and error bounds follow from these three.
* `Elementwise`: y_i = f(x_i) (value, derivative, relax).

A third family is for products and quotients, `Bivariate`: y_i = f(a_i, b_i), between two planes.
What is none of these is rewritten into them when the model is read: max(a, b) = b + relu(a - b).
"""

from onnxcert.ops.absolute import Absolute
from onnxcert.ops.adjoint import Adjoint
from onnxcert.ops.banded import BandedLinear
from onnxcert.ops.base import OPERATORS, Affine, Bivariate, Elementwise, Operator
from onnxcert.ops.concat import Concat
from onnxcert.ops.convolution import Convolution
from onnxcert.ops.cos import Cos
from onnxcert.ops.divide import Divide
from onnxcert.ops.exp import Exp
from onnxcert.ops.floor import Floor
from onnxcert.ops.leaky_relu import LeakyRelu
from onnxcert.ops.linear import Linear
from onnxcert.ops.maximum import Maximum
from onnxcert.ops.multiply import Multiply
from onnxcert.ops.piecewise_linear import PiecewiseLinear
from onnxcert.ops.power import Power
from onnxcert.ops.reciprocal import Reciprocal
from onnxcert.ops.relu import Relu
from onnxcert.ops.scale import Scale
from onnxcert.ops.select import Select
from onnxcert.ops.sigmoid import Sigmoid
from onnxcert.ops.sign import Sign
from onnxcert.ops.sin import Sin
from onnxcert.ops.sparse import SparseLinear
from onnxcert.ops.sum import Sum
from onnxcert.ops.tanh import Tanh

__all__ = [
    "OPERATORS",
    "Absolute",
    "Adjoint",
    "Affine",
    "BandedLinear",
    "Bivariate",
    "Concat",
    "Convolution",
    "Cos",
    "Divide",
    "Elementwise",
    "Exp",
    "Floor",
    "LeakyRelu",
    "Linear",
    "Maximum",
    "Multiply",
    "Operator",
    "PiecewiseLinear",
    "Power",
    "Reciprocal",
    "Relu",
    "Scale",
    "Select",
    "Sigmoid",
    "Sign",
    "Sin",
    "SparseLinear",
    "Sum",
    "Tanh",
]
