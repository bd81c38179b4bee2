"""The towers as Flax Linen modules; the only package that defines an nn.Module.

Why Linen: our model is three fixed stacks whose parameters must be stacked for a scan, named for sharding, addressed by
path for freezing and conversion, and saved, and Linen's parameters are exactly a dict of arrays with stable paths. NNX
gives that dict back only after a split, in every place where a deep model is trained with it; its live objects are what
a jitted step splits away first. Outside this package everything is functions over dicts, so that another module system
would change these files only.
"""
