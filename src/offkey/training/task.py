"""What the loop trains: a model, its objective and its augmentation in one module."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from offkey.objectives.multitask import Mix
from offkey.training.augmentation import WaveformAugmentation
from offkey.training.randomness import Moment
from offkey.types import Batch, OffkeyError

__all__ = ["TrainingTask"]


class TrainingTask(nn.Module):
    """Batch -> losses by name, with "total".

    `model`: Batch -> Representation; `objective`: (Representation, Labels, Mix | None) -> losses. The
    waveform augmentation acts in training mode only, and so does what the model holds (SpecAugment).
    """

    def __init__(
        self, model: nn.Module, objective: nn.Module, augmentation: WaveformAugmentation | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.augmentation = augmentation

    def seek(self, moment: Moment) -> None:
        """Tell everything that draws random numbers where in the run it is."""
        if self.augmentation is not None:
            self.augmentation.seek(moment)
        for module in self.model.modules():
            own = getattr(module, "seek", None)
            if own is not None:
                own(moment)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of one batch."""
        if batch.labels is None:
            raise OffkeyError("training needs labels: load the batches with a label space")
        mix: Mix | None = None
        if self.training and self.augmentation is not None:
            batch, mix = self.augmentation(batch)
        losses: dict[str, Tensor] = self.objective(self.model(batch), batch.labels, mix)
        return losses

    def encoder_rates(self) -> Iterator[tuple[nn.Parameter, float]]:
        """Pretrained weights, each with its factor on the encoder's rate, as the model says."""
        own = getattr(self.model, "encoder_rates", None)
        if own is not None:
            yield from own()
