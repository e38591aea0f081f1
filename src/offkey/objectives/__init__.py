"""What training minimises: an angular identity loss, attribute and domain losses, domain alignment.

`config` holds the settings (light, no torch); `multitask.MultiTask` adds up an identity head
(`arcface.ArcFace` or `adacos.AdaCos`), the linear heads and `mmd.multi_kernel_mmd`.
"""
