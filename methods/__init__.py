"""The proposed methods, one file each."""
