"""`swarm doctor`: what could keep this machine from serving or asking, looked at before it does.

Each file examines one thing and gives findings; `command` puts them in order. Every look has a time limit.
"""
