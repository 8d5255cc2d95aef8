"""Fine-tuning through a peer's blocks: micro-batches go forward and backward, adapters come along, nothing stays.

The layers are the library's own, loaded beside those that generate, since packed and fused ones have no gradients.
"""
