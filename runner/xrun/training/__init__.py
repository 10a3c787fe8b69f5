"""One rank: build, restore, train, export."""
