"""The checker: a small independent program that accepts or rejects certificates.

It imports NumPy, onnx and the standard library, and nothing of the rest of onnxcert; it reads the
model and the specification itself, believes no number of a certificate, and calls no solver. Run it
as ``python -m onnxcert.checker PROOF MODEL [SPEC]``. To read it, begin here:

    certificate  rule R0: files, hashes, cases; what is printed
    trees      rule R10: the walk over the trees of a certificate
    proof      rules R8, R11: what refutes a leaf
    witness    rule R13: replay of a witness
    lipschitz  rule R14: constants of a network
    audit      bounds again in exact arithmetic
    bounds     rules R1, R2, R3, R7, R9, R16: rigorous linear bounds in float64
    coefficients  the rows that are pulled back, and how sums hand them on
    bands      products with matrices that are zero outside of bands
    forward    rule R6: forms of few inputs, before those
    ascent     rule R4: lines for one form, found by an ascent of its bound
    curves     rules R4, R5: lines round a curve; ``waves`` has those of exp, sin and cos
    tilts      rule R18: planes above relus
    pieces     rule R19: sums of relus of one number
    folding    rule R22: folded networks; ``layered`` has the forms over them, ``row_slopes`` lines
    equals     rule R23: equal and opposite scalars
    decisions  whole numbers, comparisons, and what whole inputs look up in tables
    needed     rule R21: what no row depends on is left out
    pairs      rule R15: planes round products and quotients
    container  the file format
    spec       VNN-LIB 1.0 and 2.x, exactly, over one network or several
    model      ONNX; ``operators`` is the table of operators, ``network`` what they become

Trusted beyond these files: IEEE 754 arithmetic of the processor and of NumPy's sums and products (a
start-up test looks at rounding, flushing and matrix products), NumPy's tanh, sin and cos within 8
units in the last place of one, its exp and log within 8 of their values (sin and cos up to 2^20),
protobuf and onnx's reading of files, SHA-256.
"""

from onnxcert.checker.certificate import Verified, check
from onnxcert.checker.errors import Rejected, Unusable

__all__ = ["Rejected", "Unusable", "Verified", "check"]
