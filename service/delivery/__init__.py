"""The life of a webhook: fan out, attempt, retry, replay."""
