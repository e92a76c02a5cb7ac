"""The nouns, their ids, times and errors. `*_at` is in milliseconds since the epoch, UTC."""
