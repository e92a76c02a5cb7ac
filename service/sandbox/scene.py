"""The content of a picture or sound, and the random numbers to draw it with."""

import dataclasses
import random  # noqa: TID251  seeded by the request


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """File `number` of a request; equal scenes give equal bytes. Sizes are in pixels."""

    prompt: str
    seed: int
    model: str
    number: int
    width: int
    height: int

    def rng(self) -> random.Random:
        """Return a generator of random numbers, the same for equal scenes on every machine."""
        return random.Random(f"{self.model}|{self.seed}|{self.number}|{self.prompt}")

    @property
    def caption(self) -> str:
        """The small text under a picture."""
        return f"{self.model}  /  seed {self.seed}  /  no. {self.number}  /  genhook sandbox"
