"""What datasets of clips share: frames, sound, a pool of decoders, the report of faults, the training view.

Nothing here is a dataset. Decoding needs PyAV and is part of preparing alone; training needs `views` alone.
"""
