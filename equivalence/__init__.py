"""Proofs, figures, the cost meter and the command line. For your own code: `operator.check_kernel` in
`theorems`, `own_mixer.check_mixer`, `cost.count`."""
