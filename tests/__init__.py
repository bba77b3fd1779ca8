"""Tests of onnxcert; `strategies` draws inputs and `oracles` says what is true about them."""
