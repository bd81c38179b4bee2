"""What a training or decoding step would need on a TPU that is not there, read from the program that the TPU's own
compiler made.

`topologies`: which slices there are, what their chips do at best, and their devices, to compile for. `hlo`: the
compiled program as text -> instructions, and how often each runs. `estimate`: instructions -> seconds, bytes moved and
what the program is asserted to have or not to have.
"""
