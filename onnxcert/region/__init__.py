"""The largest certified box round a point: how far each input may move with the answer unchanged.

Liu, Tomioka and Cevher, *On Certifying Non-uniform Bounds against Adversarial Attacks*, 2019.
`onnxcert.region.api` is the way in.
"""
