"""genhook: submits generations, receives callbacks, fans results out as signed webhooks."""

__version__ = "0.1.0"
