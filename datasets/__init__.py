"""One folder per dataset: its card, its checksums and the step that prepares it."""
