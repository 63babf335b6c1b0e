"""Where a run stands in samples and epochs, whatever batches and data its earlier steps had."""

from typing import NamedTuple


class Timeline(NamedTuple):
    """Relates the steps of a run to its samples and epochs.

    Samples are numbered as if all epochs had had the images of now: sample g belongs to epoch g // num_images.

    Attributes:
        batch_size: samples of a step, from now on.
        num_images: training images, which are the samples of an epoch, from now on.
        epochs: that the whole run is to have.
        start_step: steps that are taken.
        start_sample: the number of the next step's first sample.
    """

    batch_size: int
    num_images: int
    epochs: float
    start_step: int = 0
    start_sample: int = 0

    def after(self, step: int, epochs: float) -> 'Timeline':
        """The same from `step` on, before which the run had so many epochs."""
        return self._replace(start_step=step, start_sample=round(epochs * self.num_images))

    @property
    def total_steps(self) -> int:
        """Steps of the whole run: what is left of its samples is divided by the batch size and rounded."""
        left = self.epochs * self.num_images - self.start_sample
        # Not round(): halves must go the same way from wherever the run goes on.
        return max(1, self.start_step + max(0, int((left + self.batch_size / 2) // self.batch_size)))

    @property
    def offset(self) -> int:
        """How far sample numbers are ahead of step * batch_size; 0 if the batch size never changed."""
        return self.start_sample - self.start_step * self.batch_size

    def sample(self, step: int) -> int:
        """The number of the first sample after `step`."""
        return step * self.batch_size + self.offset

    def epoch(self, step: int) -> float:
        """Epochs that are done after `step`."""
        return self.sample(step) / self.num_images

    def whole_epochs(self, step: int) -> int:
        """Epochs that are complete after `step`."""
        return self.sample(step) // self.num_images

    def passes(self, step: int, epochs: float) -> bool:
        """Whether `step` ends or passes a multiple of so many epochs."""
        period = epochs * self.num_images
        return self.sample(step) // period > self.sample(step - 1) // period
