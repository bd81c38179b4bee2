"""The model as Flax Linen modules; the only package that defines an nn.Module.

Why Linen: the model is three fixed stacks whose parameters are stacked for a scan, named for sharding, addressed by
path for freezing and conversion, and saved. Linen's parameters are exactly this: a dict of arrays with stable paths.
NNX gives such a dict only after a split, in every place where a deep model is trained with it; its live objects are
what a jitted step splits away first. Outside this package everything is a function over dicts, so another module system
would change only these files.
"""
