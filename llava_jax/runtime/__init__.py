"""Devices and processes: mesh, sharding, distributed start, watchdog, compilation cache."""
