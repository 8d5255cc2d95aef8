"""`swarm finetune`: an adapter of one's own from a file of texts, over the frozen blocks of a swarm."""
