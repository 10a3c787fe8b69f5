"""Many runs of one recipe: which trials there are, which go on, and who runs them."""
