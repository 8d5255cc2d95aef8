"""The names of all kinds of abuse, for who does not want to import them."""

__all__ = ["KINDS"]

KINDS = (
    *("valid", "strange", "invalid", "giant", "replayed"),
    *("opened", "hoarded"),
    *("slow", "churned", "connected", "deaf", "half_closed"),
    *("prompts", "decoding", "training"),
    *("stored", "found", "garbage"),
)
