"""Floor 3, who asks: the HF-like model, sessions, the terminal commands, benchmarks.

May import `swarm`, `routing` and `fault`; nothing from `peers`.
"""
