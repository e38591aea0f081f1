"""Any audio file to mono float32 at the model's rate, log-mel spectrograms, and a bounded cache of arrays.

The parts are imported from where they live, so that reading a header never loads torch:
`offkey.audio.io`, `offkey.audio.mel`, `offkey.audio.cache`.
"""
