"""The model: encoder, item embedding, samplers and losses, run in microbatches."""
