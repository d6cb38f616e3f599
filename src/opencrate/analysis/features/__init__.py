"""What single features of a language model stand for."""
