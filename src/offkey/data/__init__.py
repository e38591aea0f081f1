"""Data sets: what a folder holds (`source`, `check`), class numbers (`labels`), batches (`loader`).

The parts are imported from where they live, so that looking at a folder never loads torch.
"""
