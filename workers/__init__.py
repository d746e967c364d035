"""Who answers: one folder a component, on one kernel (serving)."""
