"""Tests of `onnxcert.ops`."""
