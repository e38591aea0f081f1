"""What training minimises: an angular-margin identity loss, attribute and domain losses, domain alignment.

`config` holds the settings (light, no torch); `multitask.MultiTask` adds up `arcface.ArcFace`, the linear
heads and `mmd.multi_kernel_mmd`.
"""
