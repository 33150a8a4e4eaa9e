"""One training from its first step to its last: state, log, callbacks, samples."""
