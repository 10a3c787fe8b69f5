"""State on the Hugging Face Hub."""
