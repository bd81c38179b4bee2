"""`data check`, `data stats` and `data show`: the contents and the faults of a data set."""
