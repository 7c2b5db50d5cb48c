"""Tickets in other people's training loops: callbacks for Lightning and for the Hugging Face Trainer.

`gebt.callbacks.lightning` and `gebt.callbacks.hugging_face` have an `EarlyBirdCallback` and a `TicketCallback` each, of
the same arguments; in a loop of one's own `gebt.enforce_mask` and `gebt.EarlyBird` do the same.
"""
