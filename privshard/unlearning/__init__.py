"""Taking a subject out again: presence, plan, execution, and the proof that nothing is left."""
