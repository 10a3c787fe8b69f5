"""One identity through all preemptions: its plan, its folder, its record, its costs."""
