"""Tests of `onnxcert.region`."""
