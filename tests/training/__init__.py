"""Tests of `onnxcert.training`."""
