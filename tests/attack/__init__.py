"""A machine that looks for faults: tries that follow from seeds, each a small thing to train, to
read or to disturb, whose right outcome is known otherwise (`make attack`)."""
