"""What each component does to weights, logits, accuracy and classes."""
