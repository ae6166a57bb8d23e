"""Local edits: which few weights to change when a model is wrong about an image, and what changing them does."""
