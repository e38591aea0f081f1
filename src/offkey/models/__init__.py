"""Networks and training-free statistics that turn a batch of clips into one vector a clip.

`config` holds the settings (light, no torch); `discriminative.Discriminative` and
`statistics.LogMelStatistics` are the assemblies; `tgram.TgramNet` and `mobilefacenet.MobileFaceNet` are their
parts.
"""
