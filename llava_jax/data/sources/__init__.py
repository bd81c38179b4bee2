"""Formats that examples are read from, one file each."""
