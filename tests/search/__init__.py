"""Tests of `onnxcert.search`."""
