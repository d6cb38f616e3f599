"""What single features of a language model respond to."""
