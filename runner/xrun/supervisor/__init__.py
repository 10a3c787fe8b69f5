"""One attempt from outside: lease, ranks, end. Never imports torch."""
