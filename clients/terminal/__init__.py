"""The swarm at a terminal: a chat, one question and its answer, what runs here, which models are here.

Commands load what is heavy (torch, the network) when they run; `backend` is what a chat talks to, joined or by HTTP.
"""
