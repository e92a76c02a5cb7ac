"""The nouns, their ids, times and errors."""
