"""KV blocks, prefix chains and picture embeddings: bookkeeping without torch, tensors apart."""
