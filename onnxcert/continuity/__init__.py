"""The third question: by how much can the outputs change when the input changes by so much?

A global Lipschitz constant K_ij of y_i - y_j certifies every input whose margin y_j - y_i exceeds
eps K_ij, at the price of one forward pass (Leino, Wang, Fredrikson, *Globally-Robust Neural
Networks*, ICML 2021). Everything here that is called a bound holds for the real-valued network in
spite of being computed in floating point.

::

    Graph -> plan          affine maps, curves with the range of their slopes, maxima
          -> product       norms of affine islands and a calculus of constants, any graph
          -> ellipsoid     all pairs from one matrix recursion (LipSDP in closed form)
          -> refine        its multipliers improved by gradients
          -> bound         the value `LipschitzBound`; sampled: lower bounds beside it
    bound -> bottom        an ONNX model that certifies itself
          -> certified     whole data sets

The package is not called ``lipschitz``: importing a submodule sets an attribute of that name on
`onnxcert`, which would hide the function `onnxcert.lipschitz`.
"""
