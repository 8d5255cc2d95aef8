"""Attack traffic from one peer with a real libp2p identity: `python -m tests.attacks`. One file is one sort of abuse; a
kind is a coroutine that abuses a serving peer until it is cancelled."""
