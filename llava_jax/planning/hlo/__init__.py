"""The text of a compiled program: parsed, and its FLOPs, memory traffic and collectives counted."""
