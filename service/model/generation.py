"""A generation: one request and its result."""

from typing import Any, Literal

import msgspec

from service.model.clock import DAY, rfc3339, rfc3339_or_none

GenerationStatus = Literal["queued", "processing", "succeeded", "failed", "timed_out", "canceled"]
Submission = Literal[
    "sending",  # The request to upstream is under way, or was when the process died.
    "waiting",  # Upstream certainly has no task: the request is repeated at `submit_at`.
    "taken",  # Upstream has a task.
    "lost",  # Upstream may have a task: the request is never repeated.
    "refused",  # Upstream will never have a task.
]
OPEN = ("queued", "processing")
TERMINAL = ("succeeded", "failed", "timed_out", "canceled")
RETRYABLE = ("failed", "timed_out", "canceled")
# A callback URL stays valid for this long after the deadline: upstream may repeat it for days.
CALLBACK_GRACE_MS = 7 * DAY
TRANSITIONS: dict[str, tuple[str, ...]] = {
    "queued": ("processing", "succeeded", "failed", "timed_out", "canceled"),
    "processing": ("succeeded", "failed", "timed_out", "canceled"),
    "timed_out": ("succeeded", "failed"),  # A late result is accepted: it was paid for.
    "succeeded": (),
    "failed": (),
    "canceled": (),  # By its owner, for whom the result comes too late.
}

# No other transition happens; above all, a `taken` submission is never sent again.
SUBMISSION_TRANSITIONS: dict[str, tuple[str, ...]] = {
    "sending": ("taken", "waiting", "lost", "refused"),
    "waiting": ("sending", "taken"),
    "taken": (),
    "lost": (),
    "refused": (),
}


class NewGeneration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A client's request for a generation; api/generations.py validates it."""

    model: str
    input: dict[str, Any]
    metadata: dict[str, str] = {}
    notify_url: str | None = None


class RetriedGeneration(NewGeneration, frozen=True, kw_only=True):
    """The request of an earlier generation, once more."""

    retry_of: str  # The id of the earlier generation.


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One request, its result, and when it is to be submitted or polled next."""

    id: str
    tenant: str
    model: str
    status: GenerationStatus
    route: Literal["callback", "poll"]  # How the outcome is expected.
    input: dict[str, Any]  # The model's own parameters.
    metadata: dict[str, str]
    notify_url: str | None = None
    notify_subscriber_id: str | None = None  # The subscriber created for `notify_url`.
    retry_of: str | None = None  # The earlier generation whose request this repeats.
    task_id: str | None = None  # Upstream's id; None until genhook knows it.
    output: dict[str, Any] | None = None  # {"files": [...], "raw": upstream's JSON, redacted}
    error: dict[str, str] | None = None  # {"code", "message"}
    credits: int | None = None  # What upstream bills; None until it is known.
    created_at: int
    submitted_at: int | None = None  # When genhook first knew that upstream has the task.
    completed_at: int | None = None
    deadline_at: int
    nonce: str  # Part of the callback token: a new nonce revokes the old URL.
    submission: Submission
    submit_at: int | None = None
    submit_count: int = 0
    next_poll_at: int | None = None
    poll_count: int = 0
    trouble_count: int = 0  # Consecutive polls without an answer about the task.
    late_poll_count: int = 0  # Scheduled polls made after the deadline.
    last_poll_at: int | None = None
    event_ids: list[str] = []

    def can_become(self, status: str) -> bool:
        """Whether TRANSITIONS allow a change to `status`; never to the current status."""
        return status in TRANSITIONS[self.status]

    def can_submission_become(self, submission: str) -> bool:
        """Whether SUBMISSION_TRANSITIONS allow a change to `submission`; never to the same."""
        return submission in SUBMISSION_TRANSITIONS[self.submission]

    def is_submission_due(self, now: int) -> bool:
        """Whether the submission is to be repeated now."""
        is_due = self.submit_at is not None and self.submit_at <= now
        is_waiting = self.submission == "waiting" and self.task_id is None
        return is_due and is_waiting and self.status in OPEN

    def is_poll_due(self, now: int) -> bool:
        """Whether a planned poll is due now."""
        return self.next_poll_at is not None and self.next_poll_at <= now

    def is_expired(self, now: int) -> bool:
        """Whether the generation is open past its deadline, without a planned poll to end it."""
        return self.status in OPEN and self.next_poll_at is None and self.deadline_at <= now

    @property
    def is_terminal(self) -> bool:
        """Whether the generation succeeded, failed, timed out or was canceled."""
        return self.status in TERMINAL

    @property
    def is_final(self) -> bool:
        """Whether the outcome can no longer change; that of a timed-out generation still can."""
        return not TRANSITIONS[self.status]

    def view(self) -> dict[str, Any]:
        """Return the generation as the API and events show it."""
        return {
            "id": self.id,
            "model": self.model,
            "status": self.status,
            "route": self.route,
            "input": self.input,
            "metadata": self.metadata,
            "notify_url": self.notify_url,
            "retry_of": self.retry_of,
            "task_id": self.task_id,
            "output": self.output,
            "error": self.error,
            "credits": self.credits,
            "created_at": rfc3339(self.created_at),
            "submitted_at": rfc3339_or_none(self.submitted_at),
            "completed_at": rfc3339_or_none(self.completed_at),
            "deadline_at": rfc3339(self.deadline_at),
        }
