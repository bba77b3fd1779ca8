"""Searching for an answer: attack for ``sat``, branch and bound for ``unsat``.

Nothing here touches files or prints. A candidate becomes a counterexample only through the
``confirm`` callback that `onnxcert.verifier` supplies, which replays it on the original file.
"""
