"""What a started process is made of, as the API sees it."""

from dataclasses import dataclass
from typing import Any, Protocol

from service.context import Context
from service.delivery.dispatch import Dispatcher
from service.generations.poll import Poller
from service.generations.submit import Submitter


class Worker(Protocol):
    """What the API needs of the process's worker, which knows nothing of the API."""

    @property
    def is_alive(self) -> bool:
        """True unless the worker should run here and does not."""
        ...

    async def tick(self, seconds: float) -> Any:
        """Do due work for up to `seconds`."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a started process."""

    context: Context
    submitter: Submitter
    poller: Poller
    dispatcher: Dispatcher
    worker: Worker
