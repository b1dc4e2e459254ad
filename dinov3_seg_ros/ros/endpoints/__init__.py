"""The topics of other nodes and ours: who publishes what, by which policies, and subscriptions that follow them."""
