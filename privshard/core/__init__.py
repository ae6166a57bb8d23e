"""The nouns, laws and errors that everything else speaks."""
