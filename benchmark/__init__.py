"""The harness: one protocol, one model, one training loop for every method of balanced multimodal learning."""
