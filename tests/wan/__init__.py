"""A wide-area network on one machine: hosts are network namespaces, joined by a router in userspace.

`wan.py` is what tests use; `link.py`, `gate.py` and `router.py` know nothing of it.
"""
