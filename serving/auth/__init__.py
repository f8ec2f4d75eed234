"""Who may call, and how often: tokens, rate limits, certificates."""
