"""What a picture or a sound is made from, and the chance that is the same for the same wish."""

import dataclasses
import random  # noqa: TID251  seeded by the request: the same wish gives the same bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """A wish: file `number` for a prompt, in pixels."""

    prompt: str
    seed: int
    model: str
    number: int
    width: int
    height: int

    def chance(self) -> random.Random:
        """A fresh generator that repeats itself for the same wish, on any machine."""
        return random.Random(f"{self.model}|{self.seed}|{self.number}|{self.prompt}")

    @property
    def caption(self) -> str:
        """The small print under a picture."""
        return f"{self.model}  /  seed {self.seed}  /  no. {self.number}  /  genhook sandbox"
