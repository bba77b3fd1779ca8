"""Training of classifiers for small global constants (extra ``train``: PyTorch).

The loss sees the largest logit that another class may have within the radius, by constants from
differentiable power iteration (Leino, Wang, Fredrikson, *Globally-Robust Neural Networks*, ICML
2021). Power iteration is below the norm, so nothing that is reported rests on it: the trained model
is written as an ONNX file, and what is said of it is what `onnxcert.continuity` proves of that.

`onnxcert.training.api` offers `train`. Only `network`, `losses` and `loop` need PyTorch.
"""
