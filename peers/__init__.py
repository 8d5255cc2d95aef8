"""Floor 3, who serves: executor, KV pages, batching, handlers, announcing, lifecycle.

May import `swarm`, `routing` and `fault`; nothing from `clients`.
"""
