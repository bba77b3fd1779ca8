"""Tests of `onnxcert.proof`."""
