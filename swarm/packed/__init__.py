"""Kinds of packed linear layers, one a module, and how their weights are made; `swarm.packing` chooses among them.

They know tensors and kernels, and nothing of models, peers or networks.
"""
