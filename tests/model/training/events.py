"""Callbacks that record a training, or end it, and the comparison of two networks."""

import numpy as np

from model.training import loop
from tests.support.networks import weights


class Stop(RuntimeError):
    """A crash of the machine, as `fit` sees it."""


class Interrupt(loop.Callback):
    """Raises `error` in an epoch: after a batch, or at its end."""

    def __init__(self, error, epoch, *, batch=None):
        self.error, self.epoch, self.batch = error, epoch, batch

    def on_epoch_begin(self, epoch, batches):
        self.now, self.done = epoch, 0

    def on_batch_end(self, cost, error):
        self.done += 1
        if (self.now, self.done) == (self.epoch, self.batch):
            raise self.error

    def on_epoch_end(self, epoch):
        if self.batch is None and epoch.epoch == self.epoch:
            raise self.error


class Recorder(loop.Callback):
    """Records all events."""

    def __init__(self):
        self.epochs, self.batches = [], []

    def on_epoch_begin(self, epoch, batches):
        self.expected = batches
        self.batches.append([])

    def on_batch_end(self, cost, error):
        self.batches[-1].append((cost, error))

    def on_epoch_end(self, epoch):
        self.epochs.append(epoch)


def assert_same_weights(left, right):
    for ours, theirs in zip(weights(left), weights(right), strict=True):
        np.testing.assert_array_equal(ours, theirs)
