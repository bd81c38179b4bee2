"""Estimates what a training or decoding step needs on a TPU that is not present, from the program that the TPU compiler
produces.

`topologies`: TPU slices, their rates, and devices to compile for. `lower`: the programs to compile. `hlo`: parses a
compiled program and counts its collectives, FLOPs and memory traffic. `estimate`: turns the counts into seconds.
`lint`: what slows a program down. `search`: settings that fit. `report`: results as text.
"""
