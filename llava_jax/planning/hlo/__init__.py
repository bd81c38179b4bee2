"""Parses the text of a compiled program and counts its FLOPs, memory traffic and collectives."""
