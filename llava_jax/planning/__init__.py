"""What a training or decoding step would need on a TPU that is not there, read from the program that the TPU's own
compiler made.

`topologies`: which slices there are, what their chips do at best, and their devices, to compile for. `hlo`: the
compiled program as text -> instructions, and how often each runs. `collectives`, `flops`, `memory`: what these send,
compute and move. `estimate`: all of it -> seconds. `facts`: what a fast program has and has not.
"""
