"""`data check`, `data stats` and `data show`: what is in a data set, and what is wrong with it."""
