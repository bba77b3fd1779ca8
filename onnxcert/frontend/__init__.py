"""Files and what they say: ONNX models, VNN-LIB specifications, witnesses.

Everything that is read here is checked here; behind this layer there are only valid values.
"""
