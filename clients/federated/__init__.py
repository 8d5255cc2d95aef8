"""Several clients with data of their own train one adapter in rounds.

In each round every member trains here, and says how its adapter has changed; all members combine all changes in the
same way, and so have the same adapter again. Nobody leads. Only changes of the adapter travel.
"""
