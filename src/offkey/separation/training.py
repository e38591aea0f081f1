"""What the training loop turns for a separator: lessons in, losses out, and a teacher where the truth is not known."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from offkey.separation.losses import separation_loss, si_snr
from offkey.separation.mixing import Lesson
from offkey.separation.recipe import SeparationRecipe
from offkey.types import Batch, Float, OffkeyError

__all__ = ["Measured", "SeparationTask"]


class Measured(NamedTuple):
    """Mean SI-SNR of foregrounds in dB over `clips` mixtures: of the mixtures themselves, and of what was separated."""

    before: float
    after: float
    clips: int

    @property
    def gain(self) -> float:
        """Improvement in dB."""
        return self.after - self.before


class SeparationTask(nn.Module):
    """Batch of lessons (see `mixing.lesson_plan`) -> losses by name, with "total".

    `separator`: waveform (B, T), lengths (B,) -> (B, 2, T). The teacher is a running mean of its weights, which
    answers what nobody recorded: the parts of a normal clip. It hears each clip alone, which is easier than what the
    separator hears: the clip with more noise, or with another clip (as in RemixIT: Tzinis et al., 2022).
    """

    def __init__(self, separator: nn.Module, recipe: SeparationRecipe, *, teacher: bool = False) -> None:
        super().__init__()
        self.separator = separator
        self.recipe = recipe
        self.teacher = copy.deepcopy(separator).eval().requires_grad_(False) if teacher else None
        self._exam: list[tuple[float, float, int]] = []

    def train(self, mode: bool = True) -> SeparationTask:
        """Switch mode; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of one batch; in evaluation mode also SI-SNR of the foreground before and after, and the gain."""
        parts, lengths = batch.waveform, batch.lengths
        if self.training:
            self._teach()
        target = self._answers(parts, lengths, batch.place)
        mixture = parts.sum(1)
        estimate = self.separator(mixture, lengths).float()
        losses = {"total": separation_loss(estimate, target, self.recipe.loss).mean()}
        if not self.training:
            before = si_snr(mixture, target[:, 0]).mean()
            after = si_snr(estimate[:, 0], target[:, 0]).mean()
            losses |= {"si_snr_before": before, "si_snr": after, "si_snr_gain": after - before}
            self._exam.append((float(before.detach()), float(after.detach()), len(parts)))
        return losses

    def measured(self) -> Measured | None:
        """What was measured in evaluation mode since the last call; None where nothing was."""
        exam, self._exam = self._exam, []
        clips = sum(count for _, _, count in exam)
        if not clips:
            return None
        before, after = (sum(row[column] * row[2] for row in exam) / clips for column in (0, 1))
        return Measured(before, after, clips)

    @torch.no_grad()
    def _answers(self, parts: Float[Tensor, "B 2 T"], lengths: Tensor, kinds: Tensor) -> Float[Tensor, "B 2 T"]:
        """Foreground and background that the separator is to find in the sum of the parts."""
        if not bool((kinds != Lesson.KNOWN).any()):
            return parts
        if self.teacher is None:
            raise OffkeyError("these lessons ask a teacher: build the task with teacher=True")
        target = parts.clone()
        noisy = kinds == Lesson.EXTRA_NOISE
        summed = kinds == Lesson.SUM
        asked = noisy | summed
        heard = torch.cat([parts[asked, 0], parts[summed, 1]])
        found = self.teacher(heard, torch.cat([lengths[asked], lengths[summed]])).float()
        first, second = found[: int(asked.sum())], found[int(asked.sum()) :]
        target[asked] = first
        target[noisy, 1] += parts[noisy, 1]
        target[summed] += second
        return target

    @torch.no_grad()
    def _teach(self) -> None:
        """Move the teacher a little towards the separator."""
        if self.teacher is None:
            return
        share = 1.0 - self.recipe.teacher_momentum
        for own, new in zip(self.teacher.parameters(), self.separator.parameters(), strict=True):
            own.lerp_(new, share)
        for kept, now in zip(self.teacher.buffers(), self.separator.buffers(), strict=True):
            kept.copy_(now)
