"""The promises, attacked from outside: real processes, real sockets, real files."""
