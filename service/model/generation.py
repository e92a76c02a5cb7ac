"""A generation: one request and its result."""

from typing import Any, Literal

import msgspec

from service.model.clock import DAY, rfc3339, time_or_none

GenerationStatus = Literal["queued", "processing", "succeeded", "failed", "timed_out"]
Submission = Literal["sending", "waiting", "taken", "lost", "refused"]
OPEN = ("queued", "processing")
CALLBACK_GRACE_MS = 7 * DAY  # A callback URL outlives the deadline: providers retry for days.
TERMINAL = ("succeeded", "failed", "timed_out")
TRANSITIONS: dict[str, tuple[str, ...]] = {
    "queued": ("processing", "succeeded", "failed", "timed_out"),
    "processing": ("succeeded", "failed", "timed_out"),
    "timed_out": ("succeeded", "failed"),  # The result came late; it was paid for.
    "succeeded": (),
    "failed": (),
}


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One request and its result, with what genhook still has to do about it."""

    id: str
    tenant: str
    model: str
    status: GenerationStatus
    route: Literal["callback", "poll"]
    input: dict[str, Any]
    metadata: dict[str, str]
    notify_url: str | None = None
    notify_subscriber_id: str | None = None
    task_id: str | None = None
    output: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    credits: int | None = None
    created_at: int
    submitted_at: int | None = None
    completed_at: int | None = None
    deadline_at: int
    nonce: str
    submission: Submission
    submit_at: int | None = None
    submit_count: int = 0
    next_poll_at: int | None = None
    poll_count: int = 0
    trouble_count: int = 0
    late_poll_count: int = 0
    last_poll_at: int | None = None
    event_ids: list[str] = []

    def accepts(self, status: str) -> bool:
        """True if the generation may move to `status`: a terminal state is reached once."""
        return status in TRANSITIONS[self.status]

    @property
    def is_terminal(self) -> bool:
        """True once there is an outcome, or the deadline has passed without one."""
        return self.status in TERMINAL

    def view(self) -> dict[str, Any]:
        """The generation as the API and events show it."""
        return {
            "id": self.id,
            "model": self.model,
            "status": self.status,
            "route": self.route,
            "input": self.input,
            "metadata": self.metadata,
            "notify_url": self.notify_url,
            "task_id": self.task_id,
            "output": self.output,
            "error": self.error,
            "credits": self.credits,
            "created_at": rfc3339(self.created_at),
            "submitted_at": time_or_none(self.submitted_at),
            "completed_at": time_or_none(self.completed_at),
            "deadline_at": rfc3339(self.deadline_at),
        }
