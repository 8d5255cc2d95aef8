"""`swarm bench`: what this machine and a swarm on it do, beside the least that it could take.

A regime a module (local, swarm, wan); `command` is the command line and imports nothing heavy. What one peer does alone
is measured in `peers/bench.py`.
"""
