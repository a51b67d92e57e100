"""Jobs that were given away, and those whose worker died of one of them.

No other request is to pay for a network that takes its process down: what a dead
worker had is computed again, each job alone, so that the next death has one culprit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from service.worker.protocol import CancelJob, Job, JobFailure, JobResult

MOST_DEATHS = 3  # that a job may share in

Done = Callable[[JobResult | JobFailure], None]


class Holder(Protocol):
    """Who has jobs."""

    @property
    def tickets(self) -> "dict[int, PendingJob]":
        """By the job's number."""
        ...

    def send(self, message: CancelJob) -> None: ...


@dataclass(slots=True, eq=False)
class PendingJob:
    """A job, who has it, and who is told what became of it."""

    job: Job
    done: Done
    link: Holder | None = None  # None: it waits for a worker
    deaths: int = field(default=0)
    blocking: bool = False  # its worker does nothing else for long

    def fail(self, reason: str) -> None:
        self.done(JobFailure(self.job.number, reason))


def jobs_to_retry(tickets: list[PendingJob], trying: int) -> list[PendingJob]:
    """Those that are to be computed again, alone; the others are told that they
    failed.

    Args:
        trying: the job that was computed alone when the worker died; another number
            where it was none of these: then each of them may be the culprit.
    """
    known = any(ticket.job.number == trying for ticket in tickets)
    left = []
    for ticket in tickets:
        ticket.link = None
        ticket.deaths += not known
        if ticket.job.number == trying or ticket.deaths >= MOST_DEATHS:
            ticket.fail("the worker died")
        else:
            ticket.job.alone = True
            left.append(ticket)
    return left
