"""One plain training loop for every model, with augmentation, checkpoints and exact resume.

`config` holds the settings (light, no torch); `loop.train` trains any module that maps a batch to losses;
`task.TrainingTask` makes such a module of a model, an objective and an augmentation.
"""
