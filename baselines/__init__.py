"""The published baselines, one file each."""
