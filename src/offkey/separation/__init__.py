"""Foreground and background: TF-Locoformer separation, its training, and recombination of what it finds.

Load what is needed from its own module; importing this one loads no torch.
"""
