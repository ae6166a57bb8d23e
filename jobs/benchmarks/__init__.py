"""Programs that measure: speed beside peers and floors, the cost of scheduling, faults survived, scale."""
