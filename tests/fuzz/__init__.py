"""Whatever strangers send: any bytes, in any order, at every door."""
