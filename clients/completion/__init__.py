"""One model for many users at once: their requests share chains, and all rows of a step are embedded, put through the
head and sampled together.

`request` says what is asked, `generation` what comes of it. Nothing here knows text: prompts and answers are token ids.
"""
