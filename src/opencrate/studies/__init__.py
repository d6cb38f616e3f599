"""Many runs or known truths: sweeps over seeds, and experiments."""
