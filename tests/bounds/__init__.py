"""Tests of `onnxcert.bounds`."""
