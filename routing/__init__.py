"""Floor 1, who does what: view, performance model, chains, placement.

Pure: no sockets, no torch, no clock. May import `swarm`'s values only.
"""
