"""The HTTP side: one process that joins swarms as a client, and answers many users in the ways that applications know.

Modules with endpoints give a list of routes, `routes()`; `app` puts them together. What they share is in
`request.app.state.gateway`.
"""
