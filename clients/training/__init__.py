"""Fine-tuning on the client's side: gradients through chains of peers, adapters that stay at home.

A forward pass is cut into micro-batches, each of which takes a chain of its own; what enters each hop is kept here, so
that a hop which is lost in either direction is replaced and only its part done again.
"""
