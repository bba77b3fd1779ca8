"""Bounds on the values of a network over a box.

`interval` pushes boxes forward (IBP), `backward` pulls linear forms back to the input (CROWN), and
`optimised` adjusts the free slopes and the multipliers of split constraints. All bounds here hold
for the real-valued network: rounding is charged, not ignored (see `onnxcert.ops.base`).
"""
